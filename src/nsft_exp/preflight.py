"""What is refused before any expensive work of a cell begins."""

from __future__ import annotations

from typing import Any

from nsft_exp.cell_run import build
from nsft_exp.items import held_out_places
from nsft_exp.plan import Step
from nsft_exp.records import Request, UserError


def preflight(plan: list[Step]) -> list[str]:
    """Refuse bad input before any expensive work: options, the samples, their images, the benchmarks' files.

    Returns lines on what sources and benchmarks leave out.
    """
    left_out: list[str] = []
    seen: set[str] = set()
    sizes: dict[str, int] = {}
    for step in plan:
        if step.kind == "train":
            _check_training(step)
        if step.kind == "respond":
            _check_engine(step)
        _check_parts(step)
        for group in ("source", "benchmark"):
            node = step.nodes.get(group)
            if not node or repr(node) in seen:
                continue
            seen.add(repr(node))
            plugin = build(node)
            if group == "benchmark":
                _check_server(step, plugin)
            if group == "source":
                sizes[repr(node)] = len(plugin.samples())
            else:
                _check_beams(step, plugin.requests())
            for what, number in getattr(plugin, "counts", {}).items():
                if number and ("broken" in what or "benchmark" in what):
                    left_out.append(f"{group}: {number} {what} left out")
        if step.kind == "train":
            held_out_places(sizes[repr(step.nodes["source"])], step.nodes)
    return left_out


def _check_engine(step: Step) -> None:
    """Refuse an engine that cannot answer as the pairing asks: about noised images, or in bound beams."""
    engine = step.nodes["vlm"].get("engine", "hf")
    if getattr(build(step.nodes["pairing"]), "needs_hf", False) and engine != "hf":
        raise UserError(
            f"vlm.engine={engine}: this pairing asks for what only the model in this process does (noise on "
            "the vision tower's input, answers that look at one another's tokens); take vlm.engine=hf"
        )


def _check_parts(step: Step) -> None:
    """Refuse what the constructors of a step's VLM, pairing or critic refuse, and a server that would have to
    answer for what is trained here.
    """
    parts = {group: build(step.nodes[group]) for group in ("vlm", "pairing", "critic") if group in step.nodes}
    if hasattr(parts.get("vlm"), "check_served"):
        parts["vlm"].check_served(step.init)


def _engine(step: Step) -> str:
    """What answers: `hf`, `vllm` or `server` (vlm=server has no choice)."""
    vlm = step.nodes["vlm"]
    return str(vlm.get("engine", "server" if vlm.get("server") else "hf"))


def _check_server(step: Step, benchmark: Any) -> None:
    """Refuse a benchmark that another program asks where the model is not served."""
    if hasattr(benchmark, "command") and _engine(step) != "server":
        raise UserError(
            f"benchmark {benchmark.name}: asks the model's server itself; serve it (nsft export-model, vllm "
            "serve) and take vlm=server, or the base with vlm.engine=server"
        )


def _check_beams(step: Step, requests: list[Request]) -> None:
    """Refuse a benchmark whose answers are searched with beams where the model is not in this process."""
    name = step.nodes["benchmark"].get("name")
    if _engine(step) != "hf" and any(request.decoding.num_beams > 1 for request in requests):
        raise UserError(
            f"benchmark {name}: its beam search is Hugging Face's only; take vlm.engine=hf, or num_beams=1 "
            "of the benchmark (another protocol), or leave it out of the suite"
        )


def _check_training(step: Step) -> None:
    """Refuse options of training that do not exist or that the method cannot be trained with."""
    method, *options = (build(step.nodes[group]) for group in ("method", "recipe", "tuning", "trainer"))
    if hasattr(method, "fits"):
        method.fits(*options)
