"""vLLM's side of `vlm.engine=vllm`, for an interpreter that has vLLM and need not have us.

The first line of standard input is the settings, each further line prompts and perhaps a LoRA adapter (its
number and folder); each is answered by a line on standard output. It ends when its input does.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any


def main() -> None:
    """Load the model, then answer line by line. What vLLM prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # What is batched with what must not hang on the clock: the same prompts then give the same bytes again.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import torch

    if not torch.cuda.is_available():  # compiling costs more than it saves there, and needs a compiler
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    from vllm import LLM

    settings = json.loads(sys.stdin.readline())
    options: dict[str, Any] = {}
    if settings["lora_rank"]:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": settings["lora_rank"]}
    if settings["memory"]:
        options["gpu_memory_utilization"] = settings["memory"]
    model = LLM(
        settings["model"],
        dtype=settings["dtype"],
        max_model_len=settings["max_length"],
        max_num_seqs=settings["batch_size"],
        limit_mm_per_prompt={"image": 1},
        enforce_eager=not torch.cuda.is_available(),
        seed=0,
        **options,
    )
    replies.write(json.dumps({"ready": True}) + "\n")
    replies.flush()
    for line in sys.stdin:
        message = json.loads(line)
        with_adapter = partial(model.generate, use_tqdm=False, lora_request=adapter(message["adapter"]))
        answers = answer(with_adapter, message["prompts"], settings["stops"])
        replies.write(json.dumps(answers) + "\n")
        replies.flush()


def adapter(asked: list[Any] | None) -> Any:
    """The adapter (number, folder) as vLLM takes it."""
    if asked is None:
        return None
    from vllm.lora.request import LoRARequest

    number, folder = asked
    return LoRARequest(f"adapter {number}", number, folder)


def answer(
    generate: Callable[..., Any], prompts: list[dict[str, Any]], stops: list[int]
) -> list[dict[str, Any]]:
    """Each prompt's samples (ids, log-probabilities, how they ended), its ids, and its candidates' sums."""
    inputs = [given(prompt, prompt["ids"]) for prompt in prompts]
    sampling = [asked(prompt, stops) for prompt in prompts]
    outputs = generate(inputs, sampling)
    sums: list[list[float]] = [[] for _ in prompts]
    pairs = [(n, candidate) for n, prompt in enumerate(prompts) for candidate in prompt["candidates"]]
    for (n, _), total in zip(pairs, candidate_sums(generate, prompts, pairs), strict=True):
        sums[n].append(total)
    return [
        {
            "samples": [row(o) for o in sorted(output.outputs, key=lambda o: o.index)],
            "prompt": list(output.prompt_token_ids),
            "candidates": some,
        }
        for output, some in zip(outputs, sums, strict=True)
    ]


def given(prompt: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """A prompt as vLLM takes it."""
    from PIL import Image

    if not prompt["image"]:
        return {"prompt_token_ids": ids}
    with Image.open(prompt["image"]) as picture:
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": picture.convert("RGB")}}


def asked(prompt: dict[str, Any], stops: list[int]) -> Any:
    """The sampling of a prompt. On the CPU vLLM has no seed of a request's own."""
    import torch
    from vllm import SamplingParams

    return SamplingParams(
        n=prompt["n"],
        temperature=prompt["temperature"],
        top_p=prompt["top_p"],
        seed=prompt["seed"] if prompt["temperature"] > 0 and torch.cuda.is_available() else None,
        max_tokens=prompt["max_tokens"],
        stop_token_ids=stops,
        logprobs=0,
        detokenize=False,
    )


def row(output: Any) -> dict[str, Any]:
    """One sample: its ids, the end token included, their log-probabilities, and whether it ended itself."""
    ids = list(output.token_ids)
    steps = zip(ids, output.logprobs, strict=True)
    return {
        "ids": ids,
        "logps": [step[token].logprob for token, step in steps],
        "finish": "stop" if output.finish_reason == "stop" else "length",
    }


def candidate_sums(
    generate: Callable[..., Any], prompts: list[dict[str, Any]], pairs: list[tuple[int, list[int]]]
) -> list[float]:
    """The summed log-probability of each candidate's ids after its prompt."""
    from vllm import SamplingParams

    if not pairs:
        return []
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    inputs = [given(prompts[n], prompts[n]["ids"] + candidate) for n, candidate in pairs]
    outputs = generate(inputs, sampling)
    return [
        sum(step[token].logprob for token, step in zip(ids, output.prompt_logprobs[-len(ids) :], strict=True))
        for (_, ids), output in zip(pairs, outputs, strict=True)
    ]


if __name__ == "__main__":
    main()
