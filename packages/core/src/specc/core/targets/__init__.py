"""The compiler's back ends: what a locked spec needs to be built on other machines, as files to read and run."""

from specc.core.targets.base import Setting, Target
from specc.core.targets.engines import engine_files
from specc.core.targets.folder import MANIFEST, write_folder
from specc.core.targets.jobs import Job, jobs_of
from specc.core.targets.project import FOLDER, Project, project_of
from specc.core.targets.registry import TARGETS
from specc.core.targets.render import render
from specc.core.targets.settings import read_settings

__all__ = [
    "FOLDER",
    "MANIFEST",
    "TARGETS",
    "Job",
    "Project",
    "Setting",
    "Target",
    "engine_files",
    "jobs_of",
    "project_of",
    "read_settings",
    "render",
    "write_folder",
]
