"""Every wrong prediction with its image, on one HTML page: the quickest way to see where a model fails."""

import base64
import html
import io
from pathlib import Path

import numpy as np

from benchmark.accuracy import Judged
from deit.durable import write_file
from training.images import decode

THUMBNAIL_PX = 160

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1f24;
       background: #fff }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 1rem }
figure { margin: 0 } img { width: 100%; height: 10rem; object-fit: contain; background: #f2f3f5 }
figcaption { overflow-wrap: anywhere } figcaption b { color: #a3262a } small { color: #59636e }
"""


def write_page(path: Path, judged: Judged) -> None:
    """Wrong answers of the model in its first way, the most confident first; marked where a variant or way differs."""
    model, names = judged.asked[0], judged.asked[0].model.labels
    answers = model.probabilities.argmax(axis=1)
    labels = np.array([judged.images.label(index) for index in judged.indices])
    wrong = np.flatnonzero(answers != labels)
    wrong = wrong[np.argsort(-model.probabilities[wrong].max(axis=1), kind="stable")]
    figures = []
    for place in wrong:
        row = model.probabilities[place]
        others = "".join(
            f"<br><small>{html.escape(other.model.name)} {other.way}: "
            f"{html.escape(names[other.probabilities[place].argmax()])}</small>"
            for other in judged.asked[1:]
            if other.probabilities[place].argmax() != answers[place]
        )
        figures.append(
            f'<figure><img loading="lazy" alt="" src="{_thumbnail(judged, judged.indices[place])}"><figcaption>'
            f"<b>{html.escape(names[answers[place]])}</b> {row[answers[place]]:.1%}<br>"
            f"is {html.escape(names[labels[place]])} ({row[labels[place]]:.1%}){others}<br>"
            f"<small>{html.escape(judged.images.source(judged.indices[place]))}</small></figcaption></figure>"
        )
    title = f"{model.model.name}: {len(wrong)} wrong answers to {len(labels)} images"
    write_file(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>Way: {model.way}; the most confident mistakes first. "
        f"If another way or variant answers differently, its answer is below.</p>"
        f"<main>{''.join(figures)}</main></html>\n",
    )


def _thumbnail(judged: Judged, index: int) -> str:
    picture = decode(judged.images, index)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
