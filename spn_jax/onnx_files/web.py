"""Writes the web page without a server: a static folder that runs the network in the browser.

Any web server can serve the folder as it is. The page is `spn_jax.demo`'s. `static/local.js`
replaces the module that calls its server, and `static/windows.js` implements
`spn_jax.filling.windows` in the browser. ONNX Runtime's files come from the package
onnxruntime-web, which npm fetches.
"""

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spn_jax.checkpoints.store import LoadedModel, load_model, require_new_folder
from spn_jax.errors import InputError
from spn_jax.filling.windows import LARGEST
from spn_jax.models.spn import SMALLEST
from spn_jax.onnx_files.graph import Precision
from spn_jax.onnx_files.write import network_file

HERE = Path(__file__).parent / "static"
DEMO = Path(__file__).parent.parent / "demo" / "static"
PACKAGE = "onnxruntime-web@1.30.0"
# files in the package's folder dist
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
FETCH_SECONDS = 600
SAMPLES, MEGABYTES, MEGAPIXELS = 8, 64, 25  # the most that the page takes
FORMATS = ("PNG", "JPEG", "WebP")  # formats that every browser reads

# Browsers run no modules of a page that was opened as a file.
OPENED_AS_FILE = """<script>
if (location.protocol === "file:") {
  const error = document.getElementById("error");
  error.textContent = 'Browsers do not run this page from a file: start a web server in its folder, for instance "python -m http.server".';
  error.hidden = false;
}
</script>
"""

# Texts of the page that differ without a server.
WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "index.html": (
        ('"static/', '"./'),
        ('  <nav><a href="docs">API</a></nav>\n', ""),
        (' Programs can use the requests that <a href="docs">this page</a> describes.', ""),
        ("The photo stays in this server's memory for a while, and nowhere else.", "The photo never leaves this tab."),
        ('<fieldset id="prior">', '<fieldset id="prior" hidden>'),
        ("<noscript>", f"{OPENED_AS_FILE}<noscript>"),
    ),
    "page.js": (),
    "mask.js": (),
    "style.css": (),
    "icon.svg": (),
}


def write_page(folder: Path, checkpoint: str, precision: Precision, package: Path | None) -> None:
    """Writes the folder, which appears only when it is complete.

    Args:
        package: onnxruntime-web as a folder or .tgz; None: npm fetches it.

    Raises:
        InputError: the folder is not empty or not writable, the checkpoint cannot be read, or the
            package is not there.
    """
    require_new_folder(folder)
    loaded = load_model(checkpoint)
    files = {**page_files(), **{f"ort/{name}": content for name, content in runtime_files(package).items()}}
    files["model.onnx"] = network_file(loaded, precision)
    files["page.json"] = (json.dumps(description(loaded), indent=1) + "\n").encode()
    put(folder, files)
    print(f"written: {folder}, {sum(map(len, files.values())) / 1e6:.1f} MB; try it: python -m http.server -d {folder}")


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files to the folder. Raises InputError if that fails."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            whole = Path(temporary) / "page"
            for name, content in files.items():
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                (whole / name).write_bytes(content)
            os.replace(whole, folder)  # also replaces an empty folder
    except OSError as error:
        raise InputError(f"--output {folder} cannot be written ({error.strerror or error}); choose another folder or free space") from error


def page_files() -> dict[str, bytes]:
    """Returns the page and its scripts, with their texts adapted."""
    files = {}
    for name, changes in WORDS.items():
        text = (DEMO / name).read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text, f"{name} of the page does not say {old!r} any more, and WORDS has to follow"
            text = text.replace(old, new)
        files[name] = text.encode()
    for name in ("windows.js", "pictures.js", "worker.js"):
        files[name] = (HERE / name).read_bytes()
    files["server.js"] = (HERE / "local.js").read_bytes()
    return files


def description(loaded: LoadedModel) -> dict[str, Any]:
    """Returns what the scripts have to know about the model."""
    config = loaded.config
    kind = "probabilistic " if config.model.variational else ""
    return {
        "model": f"{kind}SPN, trained at {config.data.image_size} x {config.data.image_size} pixels",
        "samples": SAMPLES if config.model.variational else 1,
        "bytes": MEGABYTES * 2**20,
        "pixels": MEGAPIXELS * 10**6,
        "original": LARGEST * config.data.image_size,
        "formats": FORMATS,
        "trained_size": config.data.image_size,
        "stride": config.model.stride,
        "smallest": SMALLEST,
        "latent": loaded.model.latent_channels,
    }


# --- ONNX Runtime for browsers ---


def runtime_files(package: Path | None) -> dict[str, bytes]:
    """Returns ONNX Runtime's files by name. Raises InputError if the package is absent or invalid,
    or npm could not fetch it.
    """
    if package is None:
        with tempfile.TemporaryDirectory() as temporary:
            return runtime_in_archive(fetched(Path(temporary)))
    if package.is_file():
        return runtime_in_archive(package)
    for folder in (package, package / "dist"):
        if all((folder / name).is_file() for name in RUNTIME):
            return {name: (folder / name).read_bytes() for name in RUNTIME}
    raise InputError(f"--onnxruntime-web {package} lacks {', '.join(RUNTIME)}; pass the folder or .tgz of npm's package {PACKAGE}")


def runtime_in_archive(path: Path) -> dict[str, bytes]:
    """Reads ONNX Runtime's files from the package's archive. Raises InputError if it is another
    archive.
    """
    found = {}
    try:
        with tarfile.open(path) as archive:
            for name in RUNTIME:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                found[name] = member.read()
    except (OSError, tarfile.TarError, KeyError, EOFError, AssertionError) as error:
        raise InputError(f"{path} is no whole archive of npm's package {PACKAGE} ({error})") from error
    return found


def fetched(folder: Path) -> Path:
    """Fetches the package's archive with npm. Raises InputError if npm is not installed or cannot
    reach it.
    """
    npm = shutil.which("npm")
    advice = f"pass --onnxruntime-web DIR, the package {PACKAGE} fetched elsewhere with `npm pack {PACKAGE}`"
    if npm is None:
        raise InputError(f"the page needs the package onnxruntime-web, and npm, which would fetch it, is not installed: {advice}")
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"npm did not fetch {PACKAGE} in {FETCH_SECONDS} seconds: {advice}") from error
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or not archives:
        reason = next((line for line in io.StringIO(done.stderr + done.stdout) if line.strip()), "it said nothing").strip()
        raise InputError(f"npm could not fetch {PACKAGE} ({reason}): {advice}")
    return archives[0]
