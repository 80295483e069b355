"""SmolLM2-135M-Instruct for the arms: joins the parts of its GGUF file and turns it into a folder that everything else reads.

python benchmarks/device/model.py build/device/carry build/device/smollm2-135m

The weights are those of the quantised file, written as bfloat16. The chat template is plain ChatML with marks around what the assistant
says, by which gradprism finds the tokens that are trained on; the model's own has a system message of its maker's besides.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if path != str(HERE)), str(HERE.parents[1] / "src")]

from gradprism.runtime.errors import DataError, MissingFileError  # noqa: E402
from gradprism.runtime.files import sha256_file  # noqa: E402

MANIFEST = "model.json"  # beside the parts: the file's name, its hash, and its parts in order
TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ '<|im_start|>assistant\n' }}{% generation %}{{ message.content }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
{%- else -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""


def split(file: Path, folder: Path, most: int) -> list[Path]:
    """Cuts a file into parts of at most `most` bytes, each in a folder of its own below `folder`, and says how they go together."""
    data = file.read_bytes()
    paths = []
    for number, start in enumerate(range(0, len(data), most), 1):
        path = folder / f"model-{number}" / f"{file.name}.{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[start : start + most])
        paths.append(path)
    told = {"name": file.name, "sha256": sha256_file(file), "parts": [path.relative_to(folder).as_posix() for path in paths]}
    for path in paths:
        (path.parent / MANIFEST).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return paths


def join(folder: Path, out: Path) -> Path:
    """Puts the parts below `folder` together again in `out`; raises `MissingFileError` for a missing part, `DataError` for a wrong hash."""
    manifests = sorted(folder.glob(f"*/{MANIFEST}"))
    if not manifests:
        raise MissingFileError(f"{folder}: holds no {MANIFEST}; benchmarks/device/prepare.py makes one")
    told = json.loads(manifests[0].read_text(encoding="utf-8"))
    parts = [folder / name for name in told["parts"]]
    if missing := [part for part in parts if not part.exists()]:
        raise MissingFileError(f"{missing[0]}: missing; {len(parts)} parts make {told['name']}")
    whole = out / told["name"]
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    if sha256_file(whole) != told["sha256"]:
        raise DataError(f"{whole}: not the file that was cut into parts; carry them again")
    return whole


def convert(gguf: Path, out: Path) -> None:
    """Writes a GGUF file as a model folder: safetensors in bfloat16, tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: Any = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(**where)
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    if hasattr(model.config, "quantization_config"):  # the weights are plain again
        del model.config.quantization_config
    model.hf_quantizer = None
    tokenizer.chat_template = TEMPLATE
    tokenizer.clean_up_tokenization_spaces = False  # what the model says is read back as it was written
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(folder: str, out: str) -> None:
    """Joins, converts, and says what came out."""
    with tempfile.TemporaryDirectory() as name:
        convert(join(Path(folder), Path(name)), Path(out))
    size = sum(path.stat().st_size for path in Path(out).iterdir())
    print(f"{out}: {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out")
    main(**vars(parser.parse_args()))
