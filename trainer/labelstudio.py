"""What the trainer asks of Label Studio, through its own client library; no other file knows that library.

The library takes a second to import and is imported when it is first needed. Its errors hold whole answers, headers
included; here they become one line that says what was expected and what to do.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from contract.errors import ConfigError

if TYPE_CHECKING:
    from label_studio_sdk import LabelStudio

UNCERTAINTY_SAMPLING: Final = "Uncertainty sampling"
"""Serves the task with the lowest score of the project's model version first."""

_TIMEOUT_S: Final = 60.0
_PAGE_TASKS: Final = 500


@dataclass(frozen=True, slots=True)
class Project:
    """What the trainer needs to know of a project."""

    project_id: int
    title: str
    label_config: str
    """The labelling config, in XML."""
    model_version: str
    """Whose predictions are shown and sorted by; empty if nobody has chosen."""


def connect(url: str, token: str) -> "LabelStudio":
    """A client that Label Studio has accepted; the token is a personal access token or a legacy one.

    Raises:
        ConfigError: if the host does not answer or refuses the token.
    """
    import httpx
    from label_studio_sdk import LabelStudio

    limits = httpx.Limits(max_keepalive_connections=0)  # the library closes none, so none is kept
    transport = httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True, limits=limits)
    base_url = url.rstrip("/") + "/"  # without the slash the library loses a path when it exchanges tokens
    with _explained(url):
        client = LabelStudio(base_url=base_url, api_key=token, timeout=_TIMEOUT_S, httpx_client=transport)
        client.users.whoami()
    return client


def read_project(client: "LabelStudio", project_id: int) -> Project:
    """The project's title, labelling config and model version.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """
    with _explained(_url_of(client), what=f"project {project_id}"):
        project = client.projects.get(id=project_id)
    return Project(project_id, project.title or "", project.label_config or "", project.model_version or "")


def project_tasks(client: "LabelStudio", project_id: int) -> Iterator[Mapping[str, Any]]:
    """Every task of a project as `id`, `data` and `annotations`, page by page, in the order of their numbers.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """
    with _explained(_url_of(client), what=f"project {project_id}"):
        for task in client.tasks.list(project=project_id, fields="all", page_size=_PAGE_TASKS):
            yield {"id": task.id, "data": task.data, "annotations": task.annotations or []}


def switch_model_version(
    client: "LabelStudio", project_id: int, version: str, *, sampling: str | None = UNCERTAINTY_SAMPLING
) -> None:
    """Make a project show, sort by and sample by the predictions of one version.

    Args:
        client: from `connect`.
        project_id: the number in the project's address.
        version: of which at least one prediction must be in the project.
        sampling: the project's task sampling; None leaves it as it is.

    Raises:
        ConfigError: if Label Studio has no prediction of that version, or does not answer.
    """
    changes = {"model_version": version} | ({"sampling": sampling} if sampling is not None else {})
    with _explained(_url_of(client), what=f"project {project_id}", version=version):
        client.projects.update(id=project_id, **changes)


def _url_of(client: "LabelStudio") -> str:
    return str(client._client_wrapper.get_base_url()).rstrip("/")


@contextmanager
def _explained(url: str, *, what: str = "", version: str = "") -> Iterator[None]:
    """Turn whatever the library and its HTTP client raise into one ConfigError."""
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    try:
        yield
    except ApiError as err:
        raise ConfigError(_explain(err.status_code, url, what, version)) from err
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        raise ConfigError(
            f"expected Label Studio at {url}, which cannot be reached ({type(err).__name__}); "
            "check LABELNEXT_LABEL_STUDIO_URL and that it is running"
        ) from err
    except ValueError as err:  # an answer that is no JSON
        raise ConfigError(
            f"expected Label Studio at {url}, got an answer that is not its own ({type(err).__name__}); "
            "check LABELNEXT_LABEL_STUDIO_URL"
        ) from err


def _explain(status: int | None, url: str, what: str, version: str) -> str:
    if status in {401, 403}:
        return (
            f"Label Studio at {url} refuses the token ({status}); set LABELNEXT_LABEL_STUDIO_TOKEN to a personal "
            "access token from the account settings (legacy tokens work only where the organisation allows them)"
        )
    if status == 404:
        return (
            f"Label Studio at {url} has no {what or 'such page'} for this token; check the number and the token's user"
        )
    if status == 400 and version:
        return (
            f"Label Studio at {url} refuses model version {version!r} for {what}: no prediction in the project has it; "
            "retrieve or import predictions of that version first"
        )
    return f"Label Studio at {url} answered {status} when asked for {what or 'the user'}; look into its log"
