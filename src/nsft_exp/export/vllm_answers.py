"""Greedy answers of vLLM to the prompts in a file, for an interpreter that has vLLM and need not have us."""

import json
import sys
from pathlib import Path
from typing import Any


def main(order: str, reply: str) -> None:
    """Read `order` (the model and prompts with ids and image); write each answer's ids and logps."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    asked = json.loads(Path(order).read_text("utf-8"))
    model = LLM(
        asked["model"],
        dtype=asked["dtype"],
        max_model_len=asked["max_length"],
        limit_mm_per_prompt={"image": 1},
        max_num_seqs=8,
        enforce_eager=True,  # a few prompts are not worth compiling for
        seed=0,
    )
    prompts = []
    for prompt in asked["prompts"]:
        inputs: dict[str, Any] = {"prompt_token_ids": prompt["ids"]}
        if prompt["image"]:
            inputs["multi_modal_data"] = {"image": Image.open(prompt["image"]).convert("RGB")}
        prompts.append(inputs)
    sampling = SamplingParams(temperature=0.0, max_tokens=asked["max_tokens"], logprobs=1, detokenize=False)
    answers = [_row(output.outputs[0]) for output in model.generate(prompts, sampling)]
    Path(reply).write_text(json.dumps(answers), "utf-8")


def _row(output: Any) -> dict[str, Any]:
    ids = list(output.token_ids)
    return {"ids": ids, "logps": [step[token].logprob for token, step in zip(ids, output.logprobs)]}  # noqa: B905


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
