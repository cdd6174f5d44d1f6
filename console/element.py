"""Element Web beside the demo: a release that is at hand, served with our configuration."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any, Final

from aiohttp import web

from console.processes import LOOPBACK, require_port_free
from fajma.errors import InputError

HOW_TO_GET: Final = (
    "No Element Web at hand: use any installed Element, or download a release of element-hq/"
    "element-web and pass it with --element-web element-vX.Y.Z.tar.gz"
)
_MAX_UNPACKED_BYTES: Final = 500 * 1024 * 1024


def unpack(given: Path, into: Path) -> Path:
    """The folder of a release, from a folder or a tarball.

    Args:
        given: what the person named.
        into: where a tarball is unpacked; kept for the next time.

    Raises:
        InputError: it is no Element Web release.
    """
    folder = given
    if given.is_file():
        folder = into / given.name
        if not (folder / "unpacked").exists():
            _extract(given, folder)
            (folder / "unpacked").touch()
    for candidate in (folder, *sorted(folder.glob("*/"))):
        if (candidate / "index.html").is_file():
            return candidate
    raise InputError(f"{given} holds no Element Web (no index.html)", code="no_element")


def _extract(tarball: Path, folder: Path) -> None:
    """Only plain files and folders, only below ``folder``."""
    try:
        with tarfile.open(tarball) as archive:
            members = [one for one in archive.getmembers() if one.isfile() or one.isdir()]
            if sum(one.size for one in members) > _MAX_UNPACKED_BYTES:
                raise InputError(f"{tarball} is too large for Element Web", code="no_element")
            for member in members:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise InputError(f"{tarball} wants to write elsewhere", code="no_element")
            folder.mkdir(parents=True, exist_ok=True)
            archive.extractall(folder, members=members)  # noqa: S202 - checked above
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{tarball} cannot be unpacked: {error}", code="no_element") from error


def configuration(homeserver_url: str, server_name: str) -> dict[str, Any]:
    """Our ``config.json`` for one homeserver."""
    here = Path(__file__).resolve().parent
    installed = here / "_element_theme"
    base = installed if installed.is_dir() else here.parent / "element-theme"
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["default_server_config"] = {
        "m.homeserver": {"base_url": homeserver_url, "server_name": server_name}
    }
    return config


class ElementServer:
    """Serves a release on loopback, with our configuration in place of its own."""

    def __init__(self, folder: Path, config: dict[str, Any], port: int) -> None:
        self._folder = folder
        self._config = config
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where to open it."""
        return f"http://{LOOPBACK}:{self._port}/"

    async def start(self) -> None:
        """Listen."""
        require_port_free(self._port, "--element-port")

        async def config(_: web.Request) -> web.Response:
            return web.json_response(self._config)

        async def index(_: web.Request) -> web.FileResponse:
            return web.FileResponse(self._folder / "index.html")

        app = web.Application()
        app.router.add_get("/config.json", config)
        app.router.add_get(f"/config.{LOOPBACK}.json", config)
        app.router.add_get("/", index)
        app.router.add_static("/", self._folder)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, self._port).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
