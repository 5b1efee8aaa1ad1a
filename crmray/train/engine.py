"""The DeepSpeed engine: its configuration from model size, device and number of workers; checkpoints; weights.

One path for CPU and GPU. No C++ compiler is needed: Adam is torch's own fused kernel, and the one operator that
DeepSpeed would build at start-up on a CPU is switched off, since training does not use it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from crmray import log
from crmray.errors import TrainingError

# fp32 weight 4 + gradient 4 + Adam's two moments 8 bytes per parameter; under autocast the weights stay fp32
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 4, 4, 8
MODEL_SHARE = 0.5
"""share of device memory that weights, gradients and optimizer may take; activations need the rest"""
BUCKET_ELEMENTS = 50_000_000
"""elements per communication bucket: DeepSpeed's own 5e8 would take gigabytes"""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How the engine runs; None means: chosen from model size, device and number of workers."""

    zero_stage: Literal[0, 1, 2, 3] | None = None
    """what is sharded over the workers: 1 optimizer state, 2 and gradients, 3 and weights"""
    precision: Literal["fp32", "bf16"] | None = None
    """bf16 computes matrix products in bfloat16 and keeps fp32 weights; chosen on GPUs that have it"""
    accumulation: int = 1
    """micro-batches per optimizer step"""
    gradient_clipping: float = 1.0
    """largest norm of the gradient; 0 does not clip"""
    offload_optimizer: bool | None = None
    """keep Adam's moments in host memory (slow; for models that fit no other way)"""
    compile: bool = False
    """torch.compile the module"""
    workers_per_trial: int = 1
    """workers of one trial of a search; more than 1 for models that fit on no single device"""

    def __post_init__(self) -> None:
        if self.zero_stage not in (None, 0, 1, 2, 3):
            raise ValueError(f"got zero_stage {self.zero_stage!r}, expected 0, 1, 2 or 3")
        if self.precision not in (None, "fp32", "bf16"):
            raise ValueError(f"got precision {self.precision!r}, expected fp32 or bf16")
        if self.accumulation < 1:
            raise ValueError(f"got accumulation {self.accumulation}, expected at least 1")
        if self.workers_per_trial < 1:
            raise ValueError(f"got workers_per_trial {self.workers_per_trial}, expected at least 1")
        if self.gradient_clipping < 0:
            raise ValueError(f"got gradient_clipping {self.gradient_clipping}, expected 0 (off) or more")


def choose(
    settings: EngineSettings,
    *,
    num_parameters: int,
    batch_size: int,
    num_workers: int,
    device: str,
    memory_bytes: int,
    has_bf16: bool,
    lr: float,
    weight_decay: float,
) -> tuple[dict[str, Any], dict[str, str]]:
    """DeepSpeed's config, and why each choice was made. Pure.

    `memory_bytes` of one device; `batch_size` is global.
    """
    (stage, why_stage), (offload, why_offload) = _sharding(settings, num_parameters, num_workers, memory_bytes)
    precision, why_precision = settings.precision, "asked for"
    if precision is None:
        precision = "bf16" if device == "cuda" and has_bf16 else "fp32"
        why_precision = "GPU with bfloat16" if precision == "bf16" else f"{device} without fast bfloat16"
    micro = -(-batch_size // (num_workers * settings.accumulation))
    zero: dict[str, Any] = {"stage": stage}
    if stage > 0:
        zero |= {
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "contiguous_gradients": True,
            "overlap_comm": stage >= 2 and device == "cuda",
        }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device == "cuda"}
    adam = {"lr": lr, "weight_decay": weight_decay, "torch_adam": True, "fused": not offload}
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": settings.accumulation,
        "gradient_clipping": settings.gradient_clipping,  # DeepSpeed clips at 1.0 when nothing is said
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own CPU Adam wants a compiler
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    if precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    why = {
        "zero_stage": f"{stage}: {why_stage}",
        "precision": f"{precision}: {why_precision}",
        "offload_optimizer": f"{offload}: {why_offload}",
        "micro_batch_size": f"{micro}: {batch_size} / ({num_workers} workers x {settings.accumulation} accumulated)",
    }
    return config, why


def _sharding(
    settings: EngineSettings, num_parameters: int, num_workers: int, memory_bytes: int
) -> tuple[tuple[int, str], tuple[bool, str]]:
    """ZeRO stage, and whether the optimizer goes to the host's memory, each with why.

    The lowest stage whose share of weights, gradients and optimizer fits in MODEL_SHARE of the memory of one device:
    each stage more costs communication.
    """
    per_worker = {
        0: WEIGHT_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES,
        1: WEIGHT_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES / num_workers,
        2: WEIGHT_BYTES + (GRADIENT_BYTES + OPTIMIZER_BYTES) / num_workers,
        3: (WEIGHT_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES) / num_workers,
    }
    room = MODEL_SHARE * memory_bytes
    fitting = [stage for stage, size in per_worker.items() if size * num_parameters <= room]
    gib = {stage: size * num_parameters / 2**30 for stage, size in per_worker.items()}
    if settings.zero_stage is not None:
        stage, why_stage = int(settings.zero_stage), "asked for"
    else:
        stage = fitting[0] if fitting else 3
        why_stage = f"{gib[stage]:.3g} GiB of weights, gradients and optimizer beside {room / 2**30:.3g} GiB of room"
    offload, why_offload = settings.offload_optimizer, "asked for"
    if offload is None:
        offload = not fitting and settings.zero_stage is None
        why_offload = "fits on no stage" if offload else "fits on the device"
    if offload and stage == 0:
        stage, why_stage = 1, "offload needs a sharded optimizer"
    return (stage, why_stage), (offload, why_offload)


def device_memory_bytes(device: str) -> int:
    """Memory of the device in bytes: of the GPU in use, or of the host shared by the workers on it."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def start(
    module: nn.Module, settings: EngineSettings, *, batch_size: int, lr: float, weight_decay: float, device: str
) -> Any:
    """The DeepSpeed engine around `module`, on the process group that is there (see `single_process_group`)."""
    deepspeed = _deepspeed()
    num_workers = torch.distributed.get_world_size()
    num_parameters = sum(p.numel() for p in module.parameters())
    config, why = choose(
        settings,
        num_parameters=num_parameters,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        memory_bytes=device_memory_bytes(device),
        has_bf16=device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
        lr=lr,
        weight_decay=weight_decay,
    )
    if torch.distributed.get_rank() == 0:
        fields: dict[str, Any] = {"parameters": num_parameters, "workers": num_workers, "device": device, **why}
        log.event("engine", **fields)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        module = module.to(torch.device("cuda", torch.cuda.current_device()))
    if settings.compile:
        module.compile(dynamic=True)
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=list(module.parameters()), config=config, dist_init_required=False
    )
    return engine


def _deepspeed() -> Any:
    """The package, quiet, without the operator (for inference) that it would compile at start-up on a CPU."""
    os.environ.setdefault("LOCAL_RANK", "0")  # asserted by DeepSpeed, set by no one in a process of Tune's
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import logging

    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if deepspeed.get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer under the wrappers of ZeRO."""
    optimizer = engine.basic_optimizer
    assert isinstance(optimizer, torch.optim.Optimizer), type(optimizer)
    return optimizer


def set_lr(engine: Any, lr: float) -> None:
    """Learning rate of the next step."""
    for group in base_optimizer(engine).param_groups:
        group["lr"] = lr
    if engine.optimizer is not engine.basic_optimizer:
        for group in engine.optimizer.param_groups:
            group["lr"] = lr


def before_step(engine: Any, check: Callable[[list[torch.Tensor]], None]) -> None:
    """Call `check(gradients)` before every optimizer step, after reduction over the workers; it may raise."""

    def hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        check([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])

    base_optimizer(engine).register_step_pre_hook(hook)


def weights(engine: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers in fp32 on the CPU; integer buffers keep their type. Called by every rank.

    Names lose `prefix`; those without it are left out.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    out: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)  # None where nothing is sharded: the parameter is whole
        out[name] = (parameter.detach() if full is None else full).float().cpu().clone()
    for name, buffer in engine.module.named_buffers():
        out[name] = (buffer.float() if buffer.is_floating_point() else buffer).detach().cpu().clone()
    return {name.removeprefix(prefix): value for name, value in out.items() if name.startswith(prefix)}


def save(engine: Any, folder: str | Path, client: Mapping[str, Any]) -> None:
    """Write the engine's state and `client` (JSON and tensors) under `folder`. Called by every rank."""
    engine.save_checkpoint(str(folder), tag="state", client_state=dict(client))


def load(engine: Any, folder: str | Path) -> dict[str, Any]:
    """Take the engine's state back and return `client`. Every rank; the number of workers must not have changed.

    DeepSpeed stores these as torch files: read only from the lake's own working folder.
    """
    path, client = engine.load_checkpoint(str(folder), tag="state")
    if path is None:
        raise TrainingError(f"{folder}: no checkpoint of this engine there; remove the folder and train again")
    return client


@contextlib.contextmanager
def single_process_group(device: str) -> Iterator[None]:
    """A process group of this process alone, ended with the block: what DeepSpeed needs outside Ray Train."""
    if torch.distributed.is_initialized():
        raise TrainingError("got a process that has a process group already, expected one without")
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
        )
        try:
            yield
        finally:
            _destroy_group()


def _destroy_group() -> None:
    """End the group in torch and in DeepSpeed, which else keeps handles of it and fails in the next training."""
    import deepspeed

    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:  # DeepSpeed never saw it
        torch.distributed.destroy_process_group()
