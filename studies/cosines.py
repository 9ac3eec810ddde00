"""How alike the class and the distillation token are, through the layers of a distilled model.

The paper (arXiv:2012.12877 section 4) reports a cosine of 0.06 between the learned tokens that grows to 0.93 at the
last layer, but not whether the first includes the positions, nor whether the last is taken before or after the final
norm (its authors: before self-attention, and at the end of the network,
https://github.com/facebookresearch/deit/issues/111). So all of them are reported here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor
from typer import Option

from deit.errors import TrainingError
from deit.log import configure_logging
from deit.options import command_of
from studies import run_study
from training.data import evaluation_batches
from training.images import open_images
from training.model import Normalize
from training.opening import open_model
from training.processes import choose_device


@dataclass(frozen=True, kw_only=True)
class TokenCosines:
    """Cosines of the two tokens, as (mean, standard deviation) over images where they depend on the image.

    Attributes:
        tokens: of the learned tokens, as they enter, without positions.
        tokens_with_positions: of the sums of token and position, which is what the first block reads.
        blocks: after each block, on the residual stream.
        final_norm: after the last layer norm, which is what the heads read.
        heads: of the rows of the two heads' weights, over classes.
    """

    tokens: float
    tokens_with_positions: float
    blocks: tuple[tuple[float, float], ...]
    final_norm: tuple[float, float]
    heads: tuple[float, float]


@torch.inference_mode()
def token_cosines(
    model: VisionTransformerDistilled,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    normalize: Normalize,
    device: torch.device,
) -> TokenCosines:
    """Measured in float32 and evaluation mode on batches as `evaluate` takes them."""
    model.eval()
    sums = torch.zeros(2, len(model.blocks) + 1, dtype=torch.float64, device=device)  # cosines, their squares
    count = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels, _ in batches:
        images = normalize(images[labels >= 0].to(device))
        final, blocks = model.forward_intermediates(images, return_prefix_tokens=True, output_fmt="NLC")
        tokens = torch.stack([*(prefix for _, prefix in blocks), final[:, :2]])  # (blocks + 1, N, 2, width)
        cosines = F.cosine_similarity(tokens[:, :, 0], tokens[:, :, 1], dim=-1).double()
        sums += torch.stack([cosines.sum(dim=-1), cosines.square().sum(dim=-1)])
        count += len(images)
    means, squares = sums / count
    deviations = (squares - means.square()).clamp(min=0).sqrt()
    measured = tuple(zip(means.tolist(), deviations.tolist(), strict=True))

    tokens = torch.cat([model.cls_token, model.dist_token], dim=1)[0]
    positioned = tokens + model.pos_embed[0, :2]
    rows = F.cosine_similarity(model.head.weight, model.head_dist.weight, dim=-1)
    return TokenCosines(
        tokens=F.cosine_similarity(tokens[0], tokens[1], dim=0).item(),
        tokens_with_positions=F.cosine_similarity(positioned[0], positioned[1], dim=0).item(),
        blocks=measured[:-1],
        final_norm=measured[-1],
        heads=(rows.mean().item(), rows.std(correction=0).item()),
    )


def plot_cosines(cosines: TokenCosines, title: str, path: Path) -> None:
    """A figure of the cosines through the layers; the format follows the file's suffix."""
    from matplotlib.figure import Figure  # only a plot needs it

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    layers = range(1, len(cosines.blocks) + 1)
    means, deviations = zip(*cosines.blocks, strict=True)
    axes.errorbar(layers, means, yerr=deviations, marker="o", markersize=3, capsize=2, label="after the block")
    axes.plot(0, cosines.tokens, "s", label="learned tokens")
    axes.plot(0, cosines.tokens_with_positions, "d", label="learned tokens with positions")
    axes.errorbar(
        len(layers), cosines.final_norm[0], yerr=cosines.final_norm[1], marker="^", label="after the final norm"
    )
    axes.set(xlabel="block", ylabel="cosine of class and distillation token", ylim=(-1.05, 1.05), title=title)
    axes.legend(fontsize="small")
    figure.savefig(path)


@dataclass(frozen=True, kw_only=True)
class CosinesConfig:
    data: Annotated[Path, Option(help="Data set with a split test (or val), or one parquet or tar file.")]
    checkpoint: Annotated[str, Option(help="Checkpoint folder, or timm's tagged name, of a distilled model.")]
    output: Annotated[Path, Option(help="Plot to write; its suffix (.png, .svg, .pdf) is the format.")]
    batch_size: Annotated[int, Option(min=1)] = 256
    workers: Annotated[int, Option(min=0, help="Processes that decode.")] = 2
    device: Annotated[str, Option(help="torch's name of the device; auto: a GPU if there is one.")] = "auto"


app = typer.Typer()


@app.command()
@command_of(CosinesConfig)
def cosines(config: CosinesConfig) -> None:
    """Measure the cosine of class and distillation token in each layer, and plot it."""
    configure_logging("text")
    device = choose_device(config.device)
    images = open_images(config.data, "test")
    trained = open_model(config.checkpoint, "--checkpoint")
    model, preprocessing = trained.model, trained.preprocessing
    if not isinstance(model, VisionTransformerDistilled):
        raise TrainingError(f"--checkpoint {config.checkpoint} has no distillation token")
    batches = evaluation_batches(images, preprocessing, batch_size=config.batch_size, workers=config.workers)
    found = token_cosines(model.to(device), batches, Normalize(preprocessing).to(device), device)
    plot_cosines(found, f"{config.checkpoint}, {len(images)} images", config.output)
    typer.echo("cosine of class and distillation token, ± standard deviation over images")
    typer.echo(f"learned tokens {found.tokens:.3f}, with positions {found.tokens_with_positions:.3f}")
    for block, (mean, deviation) in enumerate(found.blocks, start=1):
        typer.echo(f"after block {block:2}  {mean:6.3f} ± {deviation:.3f}")
    for title, (mean, deviation) in (("final norm", found.final_norm), ("head rows", found.heads)):
        typer.echo(f"{title:14}  {mean:6.3f} ± {deviation:.3f}")
    typer.echo(f"plotted in {config.output}")


if __name__ == "__main__":
    run_study(app)
