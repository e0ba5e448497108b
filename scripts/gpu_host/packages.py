"""The packages that a GPU host with PyTorch lacks for the recipes: downloads their wheels, installs those that are missing.

Called by `scripts/gpu_host.sh`. Versions are those of requirements.txt. What the host has is used as it is, whatever its
version; only fairseq2 and its native library must have theirs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[2]

CARRIED = (
    "fairseq2",
    "fairseq2n",
    "tbb",  # linked to by fairseq2n
    "nvidia-cuda-runtime-cu12",  # linked to by fairseq2n: a CUDA 13 build of PyTorch brings another
    "clusterscope",
    "click",  # of clusterscope
    "click-option-group",  # of clusterscope
    "editdistance",
    "importlib-metadata",
    "importlib-resources",
    "zipp",  # of importlib-metadata
    "ruamel-yaml",
    "torcheval",
    "soundfile",
    "cffi",  # of soundfile
    "pycparser",  # of cffi
    "soxr",
    "universal-pathlib",
    "pathlib-abc",  # of universal-pathlib
)
"""What hosts for machine learning do not usually have: into the bundle."""

EXPECTED = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "pyarrow",
    "safetensors",
    "huggingface-hub",
    "tiktoken",
    "sacrebleu",
    "fsspec",
    "packaging",
    "psutil",
    "rich",
    "tqdm",
    "typing-extensions",
)
"""What they usually have, and what is imported or called: in the bundle if asked for with `--add`."""

EXACT = ("fairseq2", "fairseq2n")
"""Of no use in another version."""

PLATFORMS = ("linux_x86_64", *(f"manylinux_2_{n}_x86_64" for n in range(28, 4, -1)), "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")  # fmt: skip
"""glibc 2.28 or newer, as fairseq2n's wheel wants."""

SUMS = "SHA256SUMS"


class BundleError(Exception):
    """A mistake of the user, told in one line."""


def pins(requirements: str, python: str) -> dict[str, str]:
    """Version of each package that requirements.txt pins for a version of Python on x86_64 Linux.

    :param requirements: Text of requirements.txt.
    :param python: `3.12`, say.
    """
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": "x86_64",
        "sys_platform": "linux",
    }
    found = {}
    for line in requirements.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bundle(folder: Path, python: str, add: Iterable[str]) -> None:
    """Downloads the wheels into a folder, prints their sizes and hashes, and writes those to SHA256SUMS."""
    versions = pins((ROOT / "requirements.txt").read_text(), python)
    names = list(dict.fromkeys([*CARRIED, *map(canonicalize_name, add)]))
    wanted = [f"{name}=={versions[name]}" if name in versions else name for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    tag = python.replace(".", "")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", f"--dest={folder}"]
    command += [f"--abi={abi}" for abi in (f"cp{tag}", "abi3", "none")]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    if subprocess.run([*command, *wanted]).returncode:
        raise BundleError(f"pip could not download all of: {' '.join(wanted)} (Python {python}); what it says is above")
    files = sorted(folder.glob("*.whl"))
    lines = [f"{sha256(file)}  {file.name}" for file in files]
    (folder / SUMS).write_text("\n".join(lines) + "\n")
    for file, line in zip(files, lines):
        print(f"{file.stat().st_size / 1e6:6.2f} MB  {line}")
    print(f"{sum(f.stat().st_size for f in files) / 1e6:6.2f} MB  in {len(files)} wheels for Python {python}, {folder}")


def wheels_of(folder: Path) -> dict[str, Path]:
    """Wheels of a bundle by the name of their package; BundleError if one is missing or not as it was."""
    sums = folder / SUMS
    if not sums.is_file():
        raise BundleError(f"{folder} has no {SUMS}; make it with: scripts/gpu_host.sh bundle {folder}")
    found = {}
    for line in sums.read_text().splitlines():
        digest, name = line.split("  ")
        file = folder / name
        if not file.is_file() or sha256(file) != digest:
            raise BundleError(
                f"{file} is {'not as it was bundled' if file.is_file() else 'missing'}; copy {folder} anew"
            )
        found[canonicalize_name(parse_wheel_filename(name)[0])] = file
    return found


def missing(wheels: dict[str, Path], host: dict[str, str]) -> list[Path]:
    """Which wheels of a bundle to install on a host; BundleError if a package is neither there nor in the bundle.

    :param host: Version of each package that the host has.
    """
    absent = [name for name in (*CARRIED, *EXPECTED) if name not in host and name not in wheels]
    if absent:
        raise BundleError(
            f"neither this host nor the bundle has {', '.join(absent)}; bundle again with: --add {' '.join(absent)}"
        )

    def needed(name: str) -> bool:
        if name not in host:
            return True
        return name in EXACT and host[name] != str(parse_wheel_filename(wheels[name].name)[1])

    return [file for name, file in sorted(wheels.items()) if needed(name)]


def extract_libraries(wheel: Path, folder: Path) -> None:
    """Extracts what a wheel has for an environment's `lib` (TBB's libraries), which `pip install --target` leaves out."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".data/data/lib/" in name and ".so" in name:
                folder.mkdir(exist_ok=True)
                (folder / Path(name).name).write_bytes(archive.read(name))


def install(folder: Path, cache: Path) -> Path:
    """Installs what this interpreter lacks, once; returns the folder of the installed packages."""
    host = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions() if d.metadata["Name"]}
    files = missing(wheels_of(folder), host)
    chosen = "\n".join([sys.version, *(file.name for file in files)])
    target = cache / hashlib.sha256(chosen.encode()).hexdigest()[:16]
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=cache))
        try:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
            command += ["--no-deps", "--no-compile", f"--target={scratch}", *map(str, files)]
            if files and subprocess.run(command, stdout=sys.stderr).returncode:
                raise BundleError(
                    f"pip could not install the wheels of {folder} for {sys.executable}; what it says is above"
                )
            for file in files:
                extract_libraries(file, scratch / "lib")
            scratch.chmod(0o755)
            try:
                scratch.rename(target)
            except OSError:  # another run was faster
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    if "jepa-tok" not in host:
        describe(ROOT / "pyproject.toml", target)
    return target


def describe(pyproject: Path, target: Path) -> None:
    """Writes the metadata by which fairseq2 finds this checkout's extension, and the probes its tokenizers."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

    project = tomllib.loads(pyproject.read_text())["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n",
        "entry_points.txt": "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items()) + "\n"
            for group, points in groups.items()
        ),
    }
    folder = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        fresh = folder / f"{name}.{os.getpid()}.tmp"
        fresh.write_text(text)
        fresh.replace(folder / name)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="gpu_host.sh", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("bundle", help="download wheels")
    verb.add_argument("dir", type=Path)
    verb.add_argument("--python", default="3.12", choices=["3.10", "3.11", "3.12"], help="Python of the host")
    verb.add_argument("--add", nargs="+", default=[], metavar="NAME", help="packages to carry as well")
    verb = verbs.add_parser("install", help="install what is missing")
    verb.add_argument("dir", type=Path)
    verb.add_argument("cache", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.verb == "bundle":
            bundle(arguments.dir, arguments.python, arguments.add)
        else:
            print(install(arguments.dir.resolve(), arguments.cache.resolve()))
    except BundleError as ex:
        print(f"gpu_host: error: {ex}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
