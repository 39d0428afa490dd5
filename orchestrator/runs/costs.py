"""What a run took, in words: time by stage, tokens, memory, energy, as far as its record tells.

Covered: all attempts together; what is not known of one is said.
Not covered: measuring (metering.py).
"""

from orchestrator.runs.record import RunRecord


def lines(record: RunRecord) -> list[str]:
    """What the attempts that have ended took; nothing where none has."""
    return [line for line in (_times(record), _training(record)) if line]


def duration(seconds: float) -> str:
    """'0.7 s', '45 s', '3 min 6 s', '2 h 5 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _times(record: RunRecord) -> str:
    ended = [each for each in record.attempts if each.ended_at is not None]
    stages: dict[str, float] = {}
    for each in record.attempts:
        for stage, seconds in each.stages_s.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    if not ended:
        return ""
    whole_s = sum((each.ended_at - each.started_at).total_seconds() for each in ended if each.ended_at is not None)
    said = f"took {duration(max(whole_s, sum(stages.values())))}"  # times are whole seconds in the record
    said += f" in {len(ended)} attempts" if len(ended) > 1 else ""
    parts = [f"{stage} {duration(seconds)}" for stage, seconds in stages.items()]
    return f"{said}: {', '.join(parts)}" if parts else said


def _training(record: RunRecord) -> str:
    trained = [each for each in record.attempts if each.from_step is not None]
    usages = [each.usage for each in trained if each.usage is not None]
    parts = []
    if record.training is not None and record.training.tokens_seen is not None:
        parts.append(f"{record.training.tokens_seen} input tokens")
    if peak_bytes := max((usage.peak_rss_bytes or 0 for usage in usages), default=0):
        parts.append(f"peak memory {_size(peak_bytes / 2**20)}")
    gpus: dict[str, int] = {}
    for usage in usages:
        for gpu, mib in usage.gpu_peak_memory_mib.items():
            gpus[gpu] = max(gpus.get(gpu, 0), mib)
    parts += [f"GPU {gpu} {_size(mib)}" for gpu, mib in gpus.items()]
    energies_j = [usage.gpu_energy_j for usage in usages if usage.gpu_energy_j is not None]
    if energies_j:
        energy_wh = sum(energies_j) / 3600
        parts.append(f"GPU energy {energy_wh:.1f} Wh" if energy_wh < 1000 else f"GPU energy {energy_wh / 1000:.2f} kWh")
    goes_on = record.attempts[-1:] if record.is_active() else []
    unknown = [each for each in trained if each.usage is None and each not in goes_on]
    if usages and unknown:
        parts.append(f"not measured in {len(unknown)} of {len(trained)} attempts")
    return f"training: {', '.join(parts)}" if parts else ""


def _size(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"
