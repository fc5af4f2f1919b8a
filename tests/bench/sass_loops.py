"""The loops of the attention kernels in a cubin: instructions, tensor-core instructions, copies, and what is left over.

   python3 sass_loops.py CUBIN [NVDISASM]     for each attention kernel its largest loop with HMMA (tests/cuda_nvcc.sh
                                              leaves cubins in build/nvcc)

Integer: address arithmetic, predicates and moves. LDGSTS is cp.async, LDSM is ldmatrix. A loop that is unrolled or
contains another is counted as it stands in the code, once; `inner` is the smallest that has all its HMMA."""
import re, subprocess, sys

def kernels(cubin, nvdisasm):
    text = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout
    name, code, labels = None, [], {}
    for line in text.splitlines() + [".section\t.text._end"]:
        section = re.match(r"\s*\.section\s+\.text\.(\S+?)[,\s]", line + " ")
        if section:
            if name and code: yield name, code, labels
            name, code, labels = section.group(1), [], {}
        label = re.match(r"(\.L_x_\d+):", line)
        if label: labels[label.group(1)] = len(code)
        op = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:\{)?\s*(@!?U?P\d+ )?\s*([A-Z0-9_.]+)(.*)", line)
        if op: code.append((op.group(2), op.group(3)))

def loops(code, labels):
    for i, (op, rest) in enumerate(code):
        target = re.search(r"`\((\.L_x_\d+)\)", rest) if op.startswith("BRA") else None
        if target and labels.get(target.group(1), i + 1) <= i: yield labels[target.group(1)], i + 1

def main():
    nvdisasm = sys.argv[2] if len(sys.argv) > 2 else "nvdisasm"
    print(f"{'kernel':34} {'all':>6} {'loop':>6} {'inner':>6} {'HMMA':>5} {'LDSM':>5} {'LDGSTS':>6} {'LDG':>4} "
          f"{'MUFU':>5} {'FP32':>5} {'integer':>7} {'of HMMA':>8} {'integer of LDGSTS':>18}")
    for name, code, labels in kernels(sys.argv[1], nvdisasm):
        short = re.search(r"(attention_[a-z_]*kernel)(?:ILi(\d+)E)?", name)
        if not short: continue
        count = lambda ops, part: sum(op.split(".")[0] in ops for op, _ in part)
        found = [code[a:b] for a, b in loops(code, labels)]
        best = max(found, key=lambda part: (count({"HMMA"}, part), len(part)), default=[])
        inner = min((part for part in found if count({"HMMA"}, part) == count({"HMMA"}, best)), key=len, default=[])
        hmma, copies = count({"HMMA"}, best), count({"LDGSTS"}, best)
        if not hmma: continue
        fp32 = count({"FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "F2FP", "FMNMX3"}, best)
        ldsm, ldg, mufu = count({"LDSM"}, best), count({"LDG"}, best), count({"MUFU"}, best)
        integer = len(best) - hmma - copies - fp32 - ldsm - ldg - mufu
        print(f"{short.group(1) + '<' + (short.group(2) or '') + '>':34} {len(code):6} {len(best):6} {len(inner):6} "
              f"{hmma:5} {ldsm:5} {copies:6} {ldg:4} {mufu:5} {fp32:5} {integer:7} {len(best) / hmma:8.1f} "
              f"{integer / copies if copies else 0:18.1f}")
main()
