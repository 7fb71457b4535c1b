"""What a whole process cannot go below: torch and transformers imported, the bundled model loaded,
120 prompts in one padded batch, logits and all. Nothing of this project's code is used.

    python benchmarks/plain_pass.py MODEL_FOLDER --prompt_format chat

bench_stages.py runs it beside activation_analysis.py.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = Path(__file__).resolve().parent.parent / "rolecircuits/inputs/original.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--prompt_format", choices=["raw", "chat"], default="raw")
    args = parser.parse_args()
    texts = [
        text for own in json.loads(PROMPTS.read_text(encoding="utf-8")).values() for text in own
    ]
    tokenizer = AutoTokenizer.from_pretrained(args.folder, padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if args.prompt_format == "chat":
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            for text in texts
        ]
    model = AutoModelForCausalLM.from_pretrained(args.folder, attn_implementation="sdpa").eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        logits = model(**batch).logits
    print(f"{len(texts)} {args.prompt_format} prompts, {logits.shape[1]} tokens at most")


if __name__ == "__main__":
    main()
