"""Pages of image sets: choose or upload one, see its energies, try settings, look at one image."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import RedirectResponse, Response

from pureebm.errors import InputError
from pureebm.purify.manifest import printable
from pureebm.web import drawing
from pureebm.web.drawing import HEIGHT, WIDTH, thumb_uri
from pureebm.web.places import OpenSet
from pureebm.web.settings import Asked, hints
from pureebm.web.site import Here, query
from pureebm.web.studio import LARGEST_SIDE, load_one

router = APIRouter()

Key = Annotated[str, Query(max_length=4096, description="such as files/cats or uploads/ID/photos")]
Index = Annotated[int, Query(ge=0, le=2**53)]
FRAME_HEADERS = {"cache-control": "private, max-age=600"}
GAINS = (2, 4, 8, 16)
N_RECENT = 5


@router.get("/")
def home(site: Here, path: Key = "files") -> Response:
    """Choose a set, or upload one."""
    listing = site.places.listing(path)
    recent = site.jobs.overview(N_RECENT)
    uploads = [(key, key.rpartition("/")[2]) for key in site.places.uploaded()]
    max_upload = site.config.rules.max_upload
    return site.page("home.html", listing=listing, recent=recent, uploads=uploads, max_upload=max_upload)


@router.post("/uploads")
def upload(site: Here, file: Annotated[UploadFile, File()]) -> Response:
    """Take an archive into the workspace."""
    key = site.places.receive(file.file, file.filename or "upload")
    return RedirectResponse(f"/set?{query(source=key)}", 303)


@router.post("/uploads/delete")
def delete_upload(site: Here, source: Annotated[str, Form(max_length=4096)]) -> Response:
    """Delete an upload that no job reads."""
    if site.jobs.uses(site.places.path(source)):
        raise InputError("a job reads this upload; cancel the job first")
    site.places.remove_upload(source)
    return RedirectResponse("/", 303)


@router.get("/set")
def set_page(site: Here, source: Key, settings: Asked) -> Response:
    """One set: facts, energies, settings, preview."""
    opened = site.places.open(source, afresh=True)
    config = site.studio.config()
    return site.page(
        "set.html",
        opened=opened,
        facts=_facts(opened),
        settings=settings,
        hints=hints(config),
        model=site.studio.loaded(),
    )


@router.get("/set/energies")
def energies(site: Here, source: Key) -> Response:
    """Part of a page: the histogram, and the images of highest energy."""
    opened = site.places.open(source)
    found = site.studio.energies(opened)
    pictures = {}
    for one in found.suspicious():
        (loaded,) = opened.load([one.index])
        if loaded.picture is not None:
            pictures[one.index] = thumb_uri(loaded.picture.pixels)
    values = found.values()
    plot = drawing.histogram(values) if len(values) else None
    return site.page(
        "energies.html",
        opened=opened,
        found=found,
        pictures=pictures,
        plot=plot,
        width=WIDTH,
        height=HEIGHT,
        side=LARGEST_SIDE,
    )


@router.get("/set/preview")
def preview(site: Here, source: Key, settings: Asked) -> Response:
    """Part of a page: sixteen images before and after."""
    opened = site.places.open(source)
    found = site.studio.preview(opened, settings.config(site.studio), settings.seed)
    shown = [
        (
            one,
            None if one.before is None else thumb_uri(one.before),
            None if one.after is None else thumb_uri(one.after),
        )
        for one in found.images
    ]
    return site.page("preview.html", opened=opened, shown=shown, side=found.side, settings=settings)


@router.get("/image")
def image_page(site: Here, source: Key, index: Index, settings: Asked) -> Response:
    """One image: settings, and room for its way."""
    opened = site.places.open(source)
    loaded = load_one(opened, index)
    return site.page(
        "image.html",
        opened=opened,
        index=index,
        total=len(opened.source),
        id=printable(loaded.item.id),
        settings=settings,
        hints=hints(site.studio.config()),
        model=site.studio.loaded(),
    )


@router.get("/image/chain")
def chain(site: Here, source: Key, index: Index, settings: Asked) -> Response:
    """Part of a page: the image before and after each step, and its energy."""
    opened = site.places.open(source)
    found = site.studio.chain(opened, index, settings.config(site.studio), settings.seed)
    return site.page(
        "chain.html",
        opened=opened,
        index=index,
        settings=settings,
        chain=found,
        plot=drawing.curve(found.energies, found.noise_first),
        width=WIDTH,
        height=HEIGHT,
        gains=GAINS,
    )


@router.get("/image/frame.png")
def frame(site: Here, source: Key, index: Index, settings: Asked, frame: Index = 0) -> Response:
    """The picture after some steps."""
    pixels = site.studio.chain(site.places.open(source), index, settings.config(site.studio), settings.seed).frames
    if frame >= len(pixels):
        raise InputError(f"there is no frame {frame}; the chain has {len(pixels)}")
    return Response(drawing.png(pixels[frame]), media_type="image/png", headers=FRAME_HEADERS)


@router.get("/image/difference.png")
def difference(
    site: Here,
    source: Key,
    index: Index,
    settings: Asked,
    frame: Index = 0,
    gain: Annotated[int, Query(ge=1, le=64)] = 4,
) -> Response:
    """What the steps have changed, amplified."""
    pixels = site.studio.chain(site.places.open(source), index, settings.config(site.studio), settings.seed).frames
    if frame >= len(pixels):
        raise InputError(f"there is no frame {frame}; the chain has {len(pixels)}")
    drawn = drawing.png(drawing.difference(pixels[0], pixels[frame], gain))
    return Response(drawn, media_type="image/png", headers=FRAME_HEADERS)


def _facts(opened: OpenSet) -> list[tuple[str, str]]:
    """What a set says of itself, in a few words."""
    told = opened.source.describe()
    facts = [("images", f"{len(opened.source):,}"), ("kind", opened.source.kind)]
    classes = told.get("classes")
    if isinstance(classes, list | dict) and classes:
        facts.append(("classes", f"{len(classes):,}"))
    if isinstance(told.get("bytes"), int):
        facts.append(("size", f"{told['bytes'] / 1e6:,.1f} MB"))
    return facts
