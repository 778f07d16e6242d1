#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write tests/data/kjv_moe_logits.bin: what Hugging Face transformers computes, for a test of the C engine.

Runs models/kjv-moe in fp32 over the first 64 bytes of its heldout.txt. The file is little-endian, without padding:

    offset  bytes   what
    0       8       magic "MUSTLOGI"
    8       4       uint32 version, 1
    12      4       uint32 positions P (64)
    16      4       uint32 vocabulary V (256)
    20      4       uint32 CRC-32 (as zlib's) of model.safetensors: other weights, other logits
    24      4 P     int32 token of each position
    24+4P   4 P V   float32 logits, row by row: row p is computed from tokens 0..p and predicts token p+1

The engine agrees when its largest absolute difference is under 1e-4 of the largest absolute logit.

Usage: models/make_vectors.py      (needs torch and transformers)
"""
import argparse
import pathlib
import struct
import zlib

import torch
import transformers

POSITIONS = 64
MAGIC, VERSION = b"MUSTLOGI", 1


def logits_of(model_dir, tokens):
    model, info = transformers.Qwen3MoeForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    problems = {what: names for what, names in info.items() if names}
    if problems:
        # A tensor that was not found would be filled with random numbers, and the vectors with nonsense.
        raise SystemExit(f"make_vectors: {model_dir} does not load cleanly: {problems}")
    with torch.no_grad():
        return model.eval()(torch.tensor([list(tokens)])).logits[0].float()


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, default=root / "models/kjv-moe")
    parser.add_argument("--out", type=pathlib.Path, default=root / "tests/data/kjv_moe_logits.bin")
    options = parser.parse_args()

    torch.set_num_threads(1)
    tokens = (options.model / "heldout.txt").read_bytes()[:POSITIONS]
    logits = logits_of(options.model, tokens)
    crc = zlib.crc32((options.model / "model.safetensors").read_bytes())
    header = MAGIC + struct.pack("<4I", VERSION, *logits.shape, crc)
    body = struct.pack(f"<{len(tokens)}i", *tokens) + logits.contiguous().numpy().astype("<f4").tobytes()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(header + body)
    print(f"{options.out}: {len(header) + len(body)} bytes, largest logit {logits.abs().max():.4f}, "
          f"transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
