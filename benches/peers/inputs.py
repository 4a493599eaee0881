"""Tensors of one measurement, read from the file that `stem bench --dump` wrote."""

import json
import os
import struct

import torch

BLOCK = 128
TYPES = {"F8_E4M3": torch.float8_e4m3fn, "F32": torch.float32, "U8": torch.uint8}


def read(path, device):
    """All tensors of a safetensors file, on `device`. Needs no package but torch."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(header))
    data = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
    tensors = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        start, end = (8 + header + offset for offset in entry["data_offsets"])
        # A copy of its own: an offset in the file need not suit the element type.
        part = torch.empty(end - start, dtype=torch.uint8, device=device)
        part.copy_(data[start:end])
        tensors[name] = part.view(TYPES[entry["dtype"]]).view(entry["shape"])
    return tensors


class Inputs:
    """Q, K and V in FP8 and, with exactly the same values, in bf16 (all scales are 1), and the block masks."""

    def __init__(self, path, device):
        tensors = read(path, device)
        self.q8, self.k8, self.v8 = (tensors[name] for name in "qkv")
        self.q, self.k, self.v = (x.to(torch.bfloat16) for x in (self.q8, self.k8, self.v8))
        self.tokens, self.hq, self.dim = self.q.shape
        self.hkv = self.k.shape[1]
        if self.k.shape[0] != self.tokens or self.tokens % BLOCK:
            raise ValueError("the peers are measured without history, on whole blocks")
        self.blocks = self.tokens // BLOCK
        self.masks = {
            name.removeprefix("block_mask_"): mask for name, mask in tensors.items() if name.startswith("block_mask_")
        }

    def mask(self, line):
        """The bool mask [hq, blocks, blocks] of a line: every block on or below the diagonal of `dense`."""
        if line == "dense":
            causal = torch.ones(self.blocks, self.blocks, dtype=torch.bool, device=self.q.device).tril()
            return causal.expand(self.hq, -1, -1)
        return self.masks[line].bool()

    def work(self, line):
        """(visible pairs of query and key in the line's blocks, blocks), over all heads."""
        mask = self.mask(line)
        kept = int(mask.sum())
        diagonal = int(mask.diagonal(dim1=1, dim2=2).sum())
        return (kept - diagonal) * BLOCK * BLOCK + diagonal * BLOCK * (BLOCK + 1) // 2, kept

    def visible(self):
        """Visible pairs over all heads."""
        return self.hq * self.tokens * (self.tokens + 1) // 2

    def bytes(self, element, kept=0):
        """Each input read once (`element` bytes a value) and the bf16 output written once."""
        rows = self.tokens * self.dim
        return rows * self.hq * (element + 2) + 2 * rows * self.hkv * element + 4 * kept


def sample_rows(inputs, count=48, seed=0):
    """(token, head) pairs: the last token of each head, and others drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(inputs.tokens - 1, head) for head in range(min(inputs.hq, count))]
    tokens = torch.randint(inputs.tokens, (max(count - len(rows), 16),), generator=generator).tolist()
    heads = torch.randint(inputs.hq, (len(tokens),), generator=generator).tolist()
    return rows + list(zip(tokens, heads))


def reference(inputs, line, rows):
    """f64 attention of some rows, on the same FP8 values and blocks: [rows, dim]."""
    mask, out = inputs.mask(line), []
    for token, head in rows:
        kv = head // (inputs.hq // inputs.hkv)
        keep = mask[head, token // BLOCK].repeat_interleave(BLOCK)[: token + 1]
        q = inputs.q[token, head].double()
        k, v = inputs.k[: token + 1, kv][keep].double(), inputs.v[: token + 1, kv][keep].double()
        out.append(torch.softmax(k @ q / inputs.dim**0.5, dim=0) @ v)
    return torch.stack(out)


def relative_error(out, rows, expected):
    """||out - expected|| / ||expected|| over the rows of `out` [tokens, hq, dim]."""
    got = torch.stack([out[token, head] for token, head in rows]).double()
    return ((got - expected).norm() / expected.norm()).item()
