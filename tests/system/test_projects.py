"""Two projects with different labels, served by one server and trained by one watch."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from contract.versions.repository import Repository
from demo.label_studio import LabelStudio
from demo.pool import Pool, read_pool, write_digits
from demo.product import Workplace
from demo.project import Project
from tests.system.conftest import Annotator, Serve, import_pool, retrieve_predictions
from tests.system.test_watch import ROUND, watching


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - a server of this test
        return str(reply.read().decode())


def test_each_project_has_its_own_model_predictions_and_page(
    studio: LabelStudio, workplace: Workplace, annotator: Annotator, digits: Pool, serve: Serve, tmp_path: Path
) -> None:
    """Both are connected to the same address before they have a model, and labelled at the same time."""
    write_digits(tmp_path / "other", counts=(0, 0, 0, 24, 16))
    other_pool = read_pool(tmp_path / "other", limit=40, seed=2)
    other = Project.create(studio.client(), title="Other digits", labels=other_pool.labels)
    annotators, pools = [annotator, import_pool(other, other_pool)], [digits, other_pool]
    projects = [each.project for each in annotators]
    repositories = [Repository(workplace.models, f"project-{project.id}") for project in projects]
    with serve(workplace) as server:
        for project in projects:
            project.connect(server.url, title="Labelnext")
        for pair in zip(*(list(each.truth)[:ROUND] for each in annotators), strict=True):
            for each, task in zip(annotators, pair, strict=True):
                each.label(task)
        second = ("--project", str(projects[1].id))
        with watching(workplace, projects[0], server.url, *second, "--labels", str(ROUND), "--rounds", "1") as watch:
            assert watch.wait_for_end() == 0
        versions = [repository.current() for repository in repositories]
        for project, pool, version, repository in zip(projects, pools, versions, repositories, strict=True):
            assert f"watching project {project.id} for model {repository.model}: " in watch.log
            assert f"project {project.id}: {ROUND} new labels (threshold {ROUND}): trained {version}" in watch.log
            assert project.settings()["model_version"] == version
            before = {task.id for task in project.tasks()}
            project.upload({"new.png": pool.images[0].path.read_bytes()})
            [new] = {task.id for task in project.tasks()} - before
            retrieve_predictions(project, [new])
            tasks = [task for task in project.tasks() if task.predictions]
            assert new in {task.id for task in tasks}
            assert {each.model_version for task in tasks for each in task.predictions} == {version}
            labels = {each.label for task in tasks for each in task.predictions if each.label}
            assert labels
            assert labels <= set(pool.labels)
        for version, repository in zip(versions, repositories, strict=True):
            assert f'href="p/{repository.model}/"' in read(f"{server.url}/")
            page = read(f"{server.url}/p/{repository.model}/")
            assert [each in page for each in versions] == [each == version for each in versions]
