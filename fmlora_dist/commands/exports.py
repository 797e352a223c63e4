"""What leaves the suite: a trained model, and the card that goes with it."""

from collections.abc import Sequence
from pathlib import Path

from fmlora_dist.commands.arguments import make_parser, write_bytes, write_text
from fmlora_dist.errors import UserError

__all__ = ["card", "export"]


def export(argv: Sequence[str]) -> int:
    """Write the final model of a run as a plain timm ViT, which timm alone loads."""
    parser = make_parser("export", export.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="the file, model.safetensors say")
    help = "write an ONNX file, too, beside --out; with --out model.onnx nothing but that"
    parser.add_argument("--onnx", action="store_true", help=help)
    arguments = parser.parse_args(argv)
    out = arguments.out
    if out.suffix not in (".safetensors", ".onnx") or (out.suffix == ".onnx" and not arguments.onnx):
        raise UserError(f"out: found {out}, expected FILE.safetensors, or FILE.onnx with --onnx")
    from fmlora_dist.export import check_onnx, plain_model

    if arguments.onnx:
        check_onnx()
    model = plain_model(arguments.run)
    files = {out.with_suffix(".onnx"): model.to_onnx} if arguments.onnx else {}
    if out.suffix == ".safetensors":
        files[out] = model.to_safetensors
    for file, content in files.items():
        write_bytes(file, content(), "out")
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    return 0


def card(argv: Sequence[str]) -> int:
    """Write a Hugging Face model card of a run: accuracies, protocol, and how to load the exported model."""
    parser = make_parser("card", card.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write README.md, say, instead of printing it")
    help = "licence under which you publish the model, as Hugging Face names it (default: other)"
    parser.add_argument("--license", default="other", metavar="ID", help=help)
    arguments = parser.parse_args(argv)
    from fmlora_dist.card import model_card

    text = model_card(arguments.run, licence=arguments.license)
    if arguments.out:
        write_text(arguments.out, text, "out")
    else:
        print(text, end="")
    return 0
