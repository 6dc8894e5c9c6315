"""What a run would need, looked at before it is begun: on every process, without writing or downloading anything."""

from arcdist.doctor.examination import DOCTOR, examine

__all__ = [
    "DOCTOR",
    "examine",
]
