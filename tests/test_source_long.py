"""A file as long as LLaVA's mix: 665,298 records of 1.5 kB open in seconds and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from source_files import talk

RECORDS = 665_298
FOLDERS = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K")
OPEN = """
import json, re, sys, time
from pathlib import Path
from nsft_exp.source.llava_json import LlavaJson
size = int(sys.argv[2]) or None
started = time.perf_counter()
samples = LlavaJson(sys.argv[1], "images", size=size, check=False).samples()
opened = time.perf_counter() - started
words = sum(len(sample.answer.split()) for sample in samples[:10_000])
status = Path("/proc/self/status").read_text()  # getrusage would count the process that started this one
peak = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024
print(json.dumps({"samples": len(samples), "seconds": opened, "peak_mb": peak, "words": words}))
"""


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic mix: every sixteenth record is text-only, ids repeat, 4 exchanges a record."""
    texts = [t for n in range(4) for t in (f"Question {n} about it?", f"An answer {n} of some words. " * 10)]
    rest = json.dumps(talk(*texts), indent=2)
    with_image = rest.replace("Question 0", "<image>\\nQuestion 0", 1)
    file = tmp_path_factory.mktemp("mix") / "llava_v1_5_mix665k.json"
    with file.open("w", encoding="utf-8") as out:
        for n in range(RECORDS):
            image = f'"image": "{FOLDERS[n % 5]}/{n:012d}.jpg", ' if n % 16 else '"model": "", '
            head = f'{{"id": "{n % 400_000:012d}", {image}"conversations": '
            out.write(f"{',' if n else '['}\n{head}{with_image if n % 16 else rest}}}")
        out.write("]\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 10_000])
def test_the_mix_opens_in_seconds_and_in_a_tenth_of_its_size(mix: Path, size: int) -> None:
    done = subprocess.run([sys.executable, "-c", OPEN, str(mix), str(size)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(mix.stat().st_size, found)
    assert found["samples"] == (size or RECORDS)
    assert found["words"] == 10_000 * 60
    assert found["seconds"] < 90  # about 17 on a core of its own
    assert found["peak_mb"] < 600
