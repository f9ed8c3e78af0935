#!/usr/bin/env python3
"""Writes tests/golden/bin: small files of torch.save, and what a reader must find in them.

    python3 tests/make_bin_fixtures.py        needs torch, safetensors and huggingface_hub

expected.safetensors holds the tensors of the good files as "<file>/<name>", contiguous.
writer.safetensors is what the reference writer makes of a fixed set of tensors: ours must
make the same bytes. The files were made with the versions that MADE.md beside them names.
"""
import io
import os
import zipfile

import huggingface_hub
import safetensors
import torch
from safetensors.torch import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "bin")
expected = {}


def ramp(*shape, dtype=torch.float32):
    count = 1
    for n in shape:
        count *= n
    return (torch.arange(count, dtype=torch.float32).reshape(shape) * 0.375 - 1).to(dtype)


def write(name, data):
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(data)
    assert len(data) < 4096, (name, len(data))


def save(name, value, tensors=None, **options):
    """tensors: what to expect of the file; None: what `value` holds; {}: an error."""
    b = io.BytesIO()
    torch.save(value, b, **options)
    write(name + ".bin", b.getvalue())
    for key, t in (value if tensors is None else tensors).items():
        if isinstance(t, torch.Tensor):
            expected[f"{name}/{key}"] = t.detach().contiguous().clone()


class Evil:
    def __reduce__(self):
        return (print, ("this file was run, not read",))


os.makedirs(HERE, exist_ok=True)
for name, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
    save(name, {"weight": ramp(3, 5, dtype=dtype), "bias": ramp(7, dtype=dtype)})

t = ramp(4, 3)
save("tied", {"embed.weight": t, "head.weight": t})
t = ramp(4, 6)
save("views", {"transposed": t.t(), "rows": t[1:3], "columns": t[:, 2:4],
               "every_other": t[::2, ::3]})
save("parameter", {"p": torch.nn.Parameter(ramp(2, 2)),
                   "frozen": torch.nn.Parameter(ramp(3), False)})
inner = {"a": ramp(2, 3), "b": ramp(2)}
save("model", {"step": 3, "loss": 1.5, "big": 2 ** 80, "log": [1, -5, 70000, ("x", None, True)],
               "model": inner}, inner)
save("state_dict", {"epoch": 2 ** 40, "state_dict": inner, "optimizer": {0: ramp(2)}}, inner)
m = torch.nn.BatchNorm1d(3)
m.register_buffer("mask", torch.ones(2, 2, dtype=torch.bool))
save("module", m.state_dict(), {k: v for k, v in m.state_dict().items()})
save("protocol4", inner, pickle_protocol=4)
save("protocol5", m.half().state_dict(), pickle_protocol=5)
save("shapes", {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "ones": ramp(1, 4, 1),
                "cube": ramp(2, 3, 4), "turned": ramp(1, 4, 3).transpose(0, 1)})

# Files that must be refused.
save("strided", {"cube": ramp(2, 3, 4).permute(2, 0, 1)}, {})
save("legacy", inner, {}, _use_new_zipfile_serialization=False)
save("evil", {"a": Evil()}, {})
save("no_tensors", {"a": 1}, {})
b = io.BytesIO()
torch.save(inner, b)
out = io.BytesIO()
with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
    for entry in zipfile.ZipFile(b).infolist():
        info = zipfile.ZipInfo(entry.filename)
        z.writestr(info, zipfile.ZipFile(b).read(entry), zipfile.ZIP_DEFLATED)
write("deflated.bin", out.getvalue())

# The same archive, stored by another tool: no zip64 records, or more of them; another root.
for name, zip64 in (("rezipped", False), ("rezip64", True)):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
        for entry in zipfile.ZipFile(b).infolist():
            info = zipfile.ZipInfo(entry.filename.replace("archive/", "other root/"))
            with z.open(info, "w", force_zip64=zip64) as f:
                f.write(zipfile.ZipFile(b).read(entry))
        for other in ("other root/code/data.pkl", "other root/other_data.pkl"):
            z.writestr(zipfile.ZipInfo(other), b"not this one")
    write(name + ".bin", out.getvalue())
    for key, t in inner.items():
        expected[f"{name}/{key}"] = t.clone()

save_file(expected, os.path.join(HERE, "expected.safetensors"), metadata={"format": "pt"})
save_file({"z": ramp(3, dtype=torch.bfloat16), "b": ramp(2, 3),
           "a.half": ramp(5, dtype=torch.float16), "\u00e9\"\\\n": ramp(1),
           "empty": ramp(0, 4), "scalar": torch.tensor(0.1),
           "aa": ramp(2, 2, dtype=torch.bfloat16)},
          os.path.join(HERE, "writer.safetensors"), metadata={"format": "pt"})

# Which shard Hugging Face puts each of these sizes (in elements of f32) into, for a limit of
# 100 bytes: the tests repeat the table.
sizes = [5, 30, 10, 10, 6, 25, 1, 40, 24, 2, 0, 26, 0]
split = huggingface_hub.split_torch_state_dict_into_shards(
    {f"t{i}": torch.zeros(n) for i, n in enumerate(sizes)}, max_shard_size=100)
print([int(split.tensor_to_filename[f"t{i}"].split("-")[1]) for i in range(len(sizes))])

with open(os.path.join(HERE, "MADE.md"), "w") as f:
    f.write("Made by tests/make_bin_fixtures.py with torch %s, safetensors %s, "
            "huggingface_hub %s.\n" % (torch.__version__, safetensors.__version__,
                                      huggingface_hub.__version__))
