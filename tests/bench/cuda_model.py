"""What the CUDA backend's kernels should take on an H200, before one has been measured.

   python3 cuda_model.py            the attention's blocks list-scheduled on the multiprocessors; a table of the 8B step
   python3 cuda_model.py check      exits 1 where makespan / ideal is above 1.15, or the step below 65 % of the rate

Everything follows from FLOP, bytes and instructions, and from the figures below: the first two were measured on an
H200 through PyTorch, the rest are assumptions, and said to be. What counts most are the products of the layers' shapes,
which nobody has measured there: the tables and `check` take the low estimate, and the output says what the high one
would make of it."""
import heapq, sys

RATE = 790e12              # measured: cuBLAS bf16, 8192^3, FLOP/s
COPY = 4.3e12              # measured: device copy, bytes read and written /s
SMS, CLOCK = 132, 1.755e9  # of the H200 SXM; clock: the boost clock's sustained end, an assumption
SHAPES = 0.83              # assumed: cuBLAS on the layers' shapes beside 8192^3, the low estimate (4096^3 beside 8192^3
                           # on an H100: 0.90, measured by others)
SHAPES_HIGH = 0.96         # assumed: the same, the high estimate (DeepGEMM's log on an H100, beside cuBLAS: 0.95-1.02)
STREAM = 0.85              # assumed: elementwise kernels of 16-byte accesses beside a copy
EDGES = 1.06               # tiles on the diagonal are computed whole
HOST = 5e-3                # assumed: seconds of the host per step that the device waits
TENSOR = 2048              # dense bf16 FMA a cycle and multiprocessor by wgmma; mma.sync reaches MMA_SYNC of it
MMA_SYNC = 0.62            # measured by others on Hopper (arXiv 2501.12084: 63-65 %)
# A warp's tile of 64 by 64 with head_dim 128: HMMA, and the instructions that it issues, as sass_loops.py counts them
# in code for sm_90a without soft caps (the inner loop runs twice a tile); and what waits leave over, an assumption:
# 3 blocks a multiprocessor in the forward pass, 2 in the backward pass.
TILES = {"forward": (128, 1282, 0.85), "dq": (192, 2 * 508 + 412, 0.70), "dk and dv": (256, 2 * 668 + 838, 0.70)}

# ---- dK/dV: which blocks there are, in the order in which they are launched, and how many tiles of lanes each walks
PART, PARTS = 64, 4        # as in wrpo_cuda.cu
def keys(P, R, share):
    """Tiles of 64 keys of [prompt | 3 responses], in order: tiles of 64 lanes that see each."""
    up = lambda a: -(-a // 64)
    tiles = []
    for first in range(0, P, 64):
        tiles.append(up((P - first) * share) + 3 * up(R * share))
    for _ in range(3):
        for first in range(0, R, 64): tiles.append(up((R - first) * share))
    return tiles
def jobs(P, R, G, share, split):
    tiles, out = keys(P, R, share), []
    if not split:                                    # from the last tile; heads one after another
        for g in range(G): out += tiles[::-1]
        return out
    for t in tiles:                                  # from the first; heads and parts of a tile side by side
        parts = max(1, min(PARTS, -(-t // PART)))
        for part in range(parts): out += [t * (part + 1) // parts - t * part // parts] * G
    return out
def makespan(lengths, slots, start):
    """Blocks go to the first free slot in the order of launch; `start`: what a block takes beside its tiles."""
    free = [0.0] * slots
    for n in lengths: heapq.heapreplace(free, free[0] + n + start)
    return max(free), sum(n + start for n in lengths) / slots
def schedule():
    worst = 0
    print("dK/dV of 8B (32 heads, 8 key/value heads), 2 blocks a multiprocessor, in tiles of 64 lanes:")
    for P, R in ((1024, 1024), (100, 1948)):
        for split in (False, True):
            lengths = jobs(P, R, 8, 4, split)
            most, ideal = makespan(lengths, 2 * SMS, 1.5)
            print(f"  {P:5} + 3 x {R}  {'parts' if split else 'whole'}  {len(lengths):5} blocks, "
                  f"longest {max(lengths):4}: makespan {most:6.1f}, ideal {ideal:6.1f}, ratio {most / ideal:.2f}")
            if split: worst = max(worst, most / ideal)
    return worst

# ---- the 8B step: a record of 1024 + 3 x 1024 rows, forward and backward, nothing recomputed
V, D, I, L, H, G, d = 128256, 4096, 14336, 32, 32, 8, 128
def table(P, R, ratio, shapes, quiet=False):
    n, targets = P + 3 * R, 3 * R
    pairs = P * (P + 1) / 2 + 3 * (R * P + R * (R + 1) / 2)
    matmul = lambda flop: flop / (RATE * shapes)
    stream = lambda size: size / (COPY * STREAM)
    weights = (H + 2 * G) * d * D + H * d * D + 3 * D * I
    logits = targets * V
    rows = []
    def row(name, seconds, flop=0): rows.append((name, seconds * 1e3, flop))
    f = 2 * n * L * weights
    row("layers' products, forward", matmul(f), f)
    row("layers' products, dx", matmul(f), f)
    gradients = stream(8 * L * weights) / 2          # read and written in float; assumed: half of it is hidden
    row("layers' products, dW, added to gradients", matmul(f) + gradients, f)
    h = 2 * targets * D * V
    row("head: logits, dx, dW", matmul(3 * h), 3 * h)
    row("logprob and its backward (logits kept)", stream(10 * logits))
    a = 4 * pairs * H * d * L
    row("attention, forward", a / ATTENTION["forward"] * EDGES, a)
    row("attention, dq", 1.5 * a / ATTENTION["dq"] * EDGES, 1.5 * a)
    row("attention, dk and dv", 2 * a / ATTENTION["dk and dv"] * EDGES * ratio, 2 * a)
    row("attention, delta and sums of parts", stream(L * (4 * n * H * d + 3 * 4 * P * 4 * 2 * G * d)))
    row("rmsnorm, forward and backward, dw", stream(L * 2 * n * D * 2 * (2 + 4 + 2)))
    row("rope, three times", stream(L * 3 * 2 * n * (H + G) * d * 2))
    row("glu, forward and backward", stream(L * n * I * 2 * (3 + 6)))
    row("embed, gather and their backward", stream(n * D * (4 + 10) + targets * D * (4 + 6)))
    row("the host, in between", HOST)
    total = sum(r[1] for r in rows)
    model = 6 * n * L * weights + 3 * h + 3.5 * a
    share = model / (total * 1e-3) / RATE
    if quiet: return total, share
    print(f"\n8B, one record of {P} + 3 x {R} rows, predicted (products assumed at {shapes:.0%} of the 8192^3 rate):")
    for name, ms, flop in rows:
        rate = f"  {flop / ms * 1e-9:6.0f} TFLOP/s" if flop else ""
        print(f"  {name:48} {ms:8.2f} ms {100 * ms / total:5.1f} %{rate}")
    print(f"  {'sum':48} {total:8.2f} ms         {model / total * 1e-9:6.0f} TFLOP/s: {100 * share:.1f} % of the "
          "products' rate")
    parameters = L * weights + 2 * V * D
    adamw = 28 * parameters / (COPY * STREAM) + 4 * parameters / (COPY * STREAM)
    for records in (2, 16, 128):
        step = records * total * 1e-3 + adamw
        print(f"  a step of {records:3} records, with the optimizer's {adamw * 1e3:.0f} ms (float moments): "
              f"{step:6.2f} s, {100 * records * model / step / RATE:.1f} %")
    best, most = table(P, R, ratio, SHAPES_HIGH, True)
    print(f"  products at {SHAPES_HIGH:.0%} instead, as unmeasured: {best:.2f} ms, {100 * most:.1f} %")
    return total, share
def attention():
    """TFLOP/s of each kernel: an HMMA is 2048 FMA on a quarter of a multiprocessor, which issues one instruction a
    cycle; the slower of the two counts."""
    print("\nattention, a tile of 64 x 64 by a warp:")
    for name, (hmma, issued, waits) in TILES.items():
        busy = hmma * 2048 / (TENSOR / 4) / MMA_SYNC
        ATTENTION[name] = hmma * 2048 * 2 / max(busy, issued) * 4 * SMS * CLOCK * waits
        print(f"  {name:10} tensor cores {busy:5.0f} cycles, {issued:5} instructions; {waits:.0%} left by waits: "
              f"{ATTENTION[name] * 1e-12:.0f} TFLOP/s of what is computed")
ATTENTION = {}
worst = schedule()
attention()
share = min(table(P, R, worst, SHAPES)[1] for P, R in ((1024, 1024), (100, 1948)))
if "check" in sys.argv[1:]: sys.exit(worst > 1.15 or share < 0.65)
