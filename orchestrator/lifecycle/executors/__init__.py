"""How a run is carried out in the background: by a process of this machine, or by a job of a scheduler."""
