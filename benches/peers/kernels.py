"""The peers. Each class prepares one line (dense, or a block mask) and `run` launches it once, giving [tokens, hq, dim].

A peer that cannot be had raises in its constructor; the script prints the reason and goes on without it."""

import importlib

import torch
import torch.nn.functional as F

from inputs import BLOCK, Inputs


def heads_first(x):
    """[tokens, heads, dim] as [1, heads, tokens, dim], without a copy."""
    return x.transpose(0, 1).unsqueeze(0)


class Sdpa:
    """torch's scaled_dot_product_attention, held to one backend."""

    sparse, dtype, element, tolerance = False, "bf16", 2, 0.01
    backend = ""

    def __init__(self, inputs, line, options):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        self.kernel = lambda: sdpa_kernel(getattr(SDPBackend, self.backend))
        self.q, self.k, self.v = (heads_first(x) for x in (inputs.q, inputs.k, inputs.v))
        self.gqa = {"enable_gqa": True}
        try:
            self.run()
        except (RuntimeError, TypeError):
            # No grouped heads in this version: as many KV heads as query heads, the same arithmetic.
            group = inputs.hq // inputs.hkv
            self.k, self.v = (x.repeat_interleave(group, dim=1) for x in (self.k, self.v))
            self.gqa = {}

    def run(self):
        with self.kernel():
            out = F.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=True, **self.gqa)
        return out[0].transpose(0, 1)


class CudnnSdpa(Sdpa):
    name, backend = "cuDNN SDPA", "CUDNN_ATTENTION"


class FlashSdpa(Sdpa):
    name, backend = "PyTorch flash SDPA", "FLASH_ATTENTION"


class Flex:
    """FlexAttention with the line's block mask. Diagonal blocks are masked element by element, all others are whole."""

    name, sparse, dtype, element, tolerance = "FlexAttention", True, "bf16", 2, 0.01
    compiled = None

    def __init__(self, inputs, line, options):
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        if Flex.compiled is None:
            mode = "max-autotune-no-cudagraphs" if options.tune else None
            Flex.compiled = torch.compile(flex_attention, dynamic=False, mode=mode) if options.compile else flex_attention
        self.q, self.k, self.v = (heads_first(x) for x in (inputs.q, inputs.k, inputs.v))
        mask = inputs.mask(line)
        below = mask & ~torch.eye(inputs.blocks, dtype=torch.bool, device=mask.device)
        rows = torch.arange(inputs.blocks, dtype=torch.int32, device=mask.device)
        ones = torch.ones(1, inputs.hq, inputs.blocks, dtype=torch.int32, device=mask.device)
        diagonal = torch.zeros(1, inputs.hq, inputs.blocks, inputs.blocks, dtype=torch.int32, device=mask.device)
        diagonal[..., 0] = rows
        self.mask = BlockMask.from_kv_blocks(
            ones,
            diagonal,
            below.sum(dim=-1, dtype=torch.int32).unsqueeze(0),
            # Kept blocks first, in ascending order.
            torch.argsort(below.to(torch.uint8), dim=-1, descending=True, stable=True).to(torch.int32).unsqueeze(0),
            BLOCK_SIZE=BLOCK,
            mask_mod=causal,
        )

    def run(self):
        out = Flex.compiled(self.q, self.k, self.v, block_mask=self.mask, enable_gqa=True)
        return out[0].transpose(0, 1)


class Blank:
    """Inputs without data: what FlexAttention needs to compile for a length."""

    mask = Inputs.mask

    def __init__(self, tokens, hq, hkv, device):
        self.q, self.k, self.v = (torch.zeros(tokens, heads, 128, dtype=torch.bfloat16, device=device) for heads in (hq, hkv, hkv))
        self.tokens, self.hq, self.blocks = tokens, hq, tokens // BLOCK


def causal(batch, head, query, key):
    return query >= key


class FlashAttention3:
    """flash-attn-3 in FP8, where it is installed."""

    name, sparse, dtype, element, tolerance = "FlashAttention-3 FP8", False, "e4m3", 1, 0.05

    def __init__(self, inputs, line, options):
        self.flash = importlib.import_module("flash_attn_interface").flash_attn_func
        self.q, self.k, self.v = (x.unsqueeze(0) for x in (inputs.q8, inputs.k8, inputs.v8))
        self.one = torch.ones(1, inputs.hkv, dtype=torch.float32, device=inputs.q.device)

    def run(self):
        scales = {"q_descale": self.one, "k_descale": self.one, "v_descale": self.one}
        out = self.flash(self.q, self.k, self.v, causal=True, **scales)
        return (out[0] if isinstance(out, tuple) else out)[0]


class FlashInfer:
    """FlashInfer's single prefill, where it is installed."""

    name, sparse, dtype, element, tolerance = "FlashInfer", False, "bf16", 2, 0.01

    def __init__(self, inputs, line, options):
        self.prefill = importlib.import_module("flashinfer").single_prefill_with_kv_cache
        self.q, self.k, self.v = inputs.q, inputs.k, inputs.v

    def run(self):
        return self.prefill(self.q, self.k, self.v, causal=True)


class HpcBsa:
    """hpc-ops' block-sparse FP8 prefill on pages of 64, where it is installed."""

    name, sparse, dtype, element, tolerance = "HPC-BSA", True, "e4m3", 1, 0.05
    page = 64

    def __init__(self, inputs, line, options):
        hpc = importlib.import_module("hpc")
        self.prefill = hpc.attention_with_kvcache_blocksparse_prefill_fp8
        device, pages = inputs.q.device, inputs.tokens // self.page
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(0)).to(device)
        self.q, self.tokens = inputs.q8, inputs.tokens
        shape = (pages, self.page, inputs.hkv, inputs.dim)
        self.k, self.v = (
            torch.empty_like(x.view(torch.uint8)).view(shape).index_copy_(0, order, x.view(torch.uint8).view(shape)).view(x.dtype)
            for x in (inputs.k8, inputs.v8)
        )
        self.table = order.to(torch.int32).unsqueeze(0)
        self.q_scale = torch.ones(1, inputs.hq, inputs.tokens, dtype=torch.float32, device=device)
        self.one = torch.ones(1, dtype=torch.float32, device=device)
        self.cu = torch.tensor([0, inputs.tokens], dtype=torch.int32, device=device)
        self.length = torch.tensor([inputs.tokens], dtype=torch.int32, device=device)
        self.mask = None if line == "dense" else inputs.mask(line).to(torch.uint8).unsqueeze(0)

    def run(self):
        return self.prefill(
            self.q,
            self.k,
            self.v,
            self.q_scale,
            self.one,
            self.one,
            self.cu,
            self.table,
            self.length,
            self.tokens,
            block_mask=self.mask,
        )


class Gemm:
    """The roof: an FP8 matrix product with fast accumulation, bf16 out."""

    name, dtype, element, extent = "cuBLAS FP8 GEMM", "e4m3", 1, 8192

    def __init__(self, device, extent=extent):
        self.extent = extent
        self.draw(device)

    def draw(self, device):
        extent = self.extent

        def matrix():
            return torch.randn(extent, extent, device=device).to(torch.float8_e4m3fn)

        self.a, self.b = matrix(), matrix().t()
        self.one = torch.ones((), dtype=torch.float32, device=device)

    def run(self):
        scales = {"scale_a": self.one, "scale_b": self.one}
        return torch._scaled_mm(self.a, self.b, out_dtype=torch.bfloat16, use_fast_accum=True, **scales)

    def flops(self):
        return 2 * self.extent**3

    def bytes(self):
        return (2 * self.element + 2) * self.extent**2

    def error(self, rows=16):
        expected = self.a[:rows].double() @ self.b.double()
        return ((self.run()[:rows].double() - expected).norm() / expected.norm()).item()


class Gemm16(Gemm):
    """The roof of the bf16 peers."""

    name, dtype, element = "cuBLAS BF16 GEMM", "bf16", 2

    def draw(self, device):
        self.a, self.b = (torch.randn(self.extent, self.extent, device=device, dtype=torch.bfloat16) for _ in range(2))

    def run(self):
        return self.a @ self.b


ROOFS = {"gemm": Gemm, "gemm16": Gemm16}
PEERS = {
    "cudnn": CudnnSdpa,
    "flash": FlashSdpa,
    "flex": Flex,
    "fa3": FlashAttention3,
    "flashinfer": FlashInfer,
    "hpc": HpcBsa,
}
