"""Pictures of our own, drawn: a ship and an airplane that a model of CIFAR-10's classes knows."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = WIDTH, HEIGHT = 1200, 800

Colour = tuple[int, int, int]


def ship() -> Image.Image:
    picture = _gradient(HEIGHT, (120, 170, 220), (240, 225, 205))
    picture.paste(_gradient(300, (50, 95, 135), (20, 50, 85)), (0, 500))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(250, 470), (950, 470), (880, 590), (320, 590)], fill=(150, 40, 35))
    draw.polygon([(250, 470), (950, 470), (940, 490), (262, 490)], fill=(235, 235, 235))
    draw.rectangle([400, 370, 800, 470], fill=(240, 240, 238))
    for x in range(425, 790, 45):
        draw.rectangle([x, 400, x + 24, 425], fill=(60, 80, 100))
    draw.rectangle([520, 300, 720, 370], fill=(225, 225, 222))
    draw.rectangle([590, 215, 660, 300], fill=(200, 60, 45))
    draw.rectangle([590, 215, 660, 235], fill=(40, 40, 45))
    draw.line([860, 470, 860, 330], fill=(90, 90, 90), width=8)
    draw.line([330, 470, 330, 360], fill=(90, 90, 90), width=8)
    return _grainy(picture)


def airplane() -> Image.Image:
    picture = _gradient(HEIGHT, (70, 130, 205), (190, 215, 240))
    picture.paste((255, 255, 255), mask=_clouds())
    draw = ImageDraw.Draw(picture)
    white, grey = (238, 240, 243), (172, 180, 190)
    draw.polygon([(560, 420), (700, 420), (520, 640), (455, 640)], fill=grey)
    draw.polygon([(590, 390), (690, 390), (560, 250), (510, 250)], fill=(205, 211, 218))
    draw.ellipse([230, 350, 990, 460], fill=white)
    draw.polygon([(300, 400), (200, 260), (260, 260), (390, 385)], fill=(200, 60, 45))
    draw.polygon([(270, 410), (180, 470), (230, 475), (350, 425)], fill=grey)
    draw.chord([230, 350, 990, 460], 20, 160, fill=(214, 219, 225))
    for x in range(420, 880, 34):
        draw.ellipse([x, 385, x + 14, 399], fill=(70, 95, 125))
    draw.polygon([(925, 372), (968, 388), (930, 394)], fill=(50, 70, 95))
    draw.ellipse([560, 455, 640, 495], fill=(150, 158, 168))
    return _grainy(picture)


def _gradient(height: int, top: Colour, bottom: Colour) -> Image.Image:
    share = np.linspace(0, 1, height)[:, None, None]
    rows = (1 - share) * np.array(top) + share * np.array(bottom)
    return Image.fromarray(np.broadcast_to(rows, (height, WIDTH, 3)).astype(np.uint8))


def _clouds() -> Image.Image:
    random = np.random.default_rng(3)
    clouds = Image.new("L", SIZE, 0)
    draw = ImageDraw.Draw(clouds)
    for _ in range(26):
        x, y = random.integers(-100, WIDTH), random.choice([120, 640]) + random.integers(-60, 60)
        radius = random.integers(50, 120)
        draw.ellipse([x, y, x + 2.4 * radius, y + radius], fill=int(random.integers(60, 130)))
    return clouds.filter(ImageFilter.GaussianBlur(28))


def _grainy(picture: Image.Image) -> Image.Image:
    grain = np.random.default_rng(0).normal(0, 4, (HEIGHT, WIDTH, 1))
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2))) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
