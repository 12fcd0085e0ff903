"""The pages for people: two documents, their scripts, one sheet. Nothing comes from elsewhere, or from clients."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
MEDIA = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


def routes(*, review: bool) -> APIRouter:
    """The pages' addresses; `/review` only where there is something to review."""
    router = APIRouter(include_in_schema=False)
    pages = {"/": "try.html", "/page.js": "page.js", "/try.js": "try.js", "/page.css": "page.css"}
    if review:
        pages |= {"/review": "review.html", "/review.js": "review.js"}
    for path, name in pages.items():
        _add(router, path, name)
    return router


def _add(router: APIRouter, path: str, name: str) -> None:
    content = (files("l2l") / "serving" / "page" / name).read_bytes()

    @router.get(path)
    async def page() -> Response:
        return Response(content, media_type=MEDIA[name.rpartition(".")[2]], headers=HEADERS)
