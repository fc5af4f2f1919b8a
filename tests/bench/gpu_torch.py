"""PyTorch on the shapes of cuda_bench.c: products and attention in bf16. gpu.sh runs it where torch sees a GPU."""
import time, torch, torch.nn.functional as F
def bench(f):
    f(); torch.cuda.synchronize(); n = 0; b = time.time()
    while time.time() - b < 0.1:
        for _ in range(10): f()
        n += 10; torch.cuda.synchronize()
    return (time.time() - b) / n
print("torch", torch.__version__, "CUDA", torch.version.cuda)
g = dict(device="cuda", dtype=torch.bfloat16)
for name, D, qkv, Hd, I in (("8B", 4096, 6144, 4096, 14336), ("135M", 576, 960, 576, 1536)):
    for what, out, k in (("qkv", qkv, D), ("o", D, Hd), ("gate|up", 2 * I, D), ("down", D, I)):
        x, w, y = torch.randn(6144, k, **g), torch.randn(out, k, **g), torch.randn(6144, out, **g)
        for layout, f in (("y", lambda: x @ w.T), ("dx", lambda: y @ w), ("dW", lambda: y.T @ x)):
            t = bench(f); print(f"gemm {name} {what} {layout} 6144x{out}x{k}".ljust(44), f"{t * 1e3:10.3f} ms  {2 * 6144 * out * k / t * 1e-12:26.1f} TFLOP/s")
for name, H, G, d in (("8B", 32, 8, 128), ("135M", 9, 3, 64)):      # three sequences of 2048: the prompt three times
    q, k, v = (torch.randn(3, h, 2048, d, requires_grad=True, **g) for h in (H, G, G))
    kk, vv = k.repeat_interleave(H // G, 1).detach().requires_grad_(), v.repeat_interleave(H // G, 1).detach().requires_grad_()
    t = bench(lambda: F.scaled_dot_product_attention(q, kk, vv, is_causal=True)); print(f"attention {name}, 3 x 2048 causal".ljust(44), f"{t * 1e3:10.3f} ms")
    o = F.scaled_dot_product_attention(q, kk, vv, is_causal=True); u = torch.randn_like(o)
    t = bench(lambda: torch.autograd.grad(o, (q, kk, vv), u, retain_graph=True)); print(f"attention_bwd {name}, 3 x 2048 causal".ljust(44), f"{t * 1e3:10.3f} ms")
