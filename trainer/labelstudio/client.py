"""A client for Label Studio's API that is bound to a project."""

from contract.label_studio import LabelStudioClient, RetryPolicy


class ProjectClient(LabelStudioClient):
    """A client for the requests of one project.

    Raises ConfigError if the token contains other characters than printable ASCII without spaces.
    """

    def __init__(self, url: str, token: str, project: int, retries: RetryPolicy | None = None) -> None:
        super().__init__(url, token, retries=retries)
        self.project = project
        self.path = f"/api/projects/{project}/"
        self.what = f"project {project}"
