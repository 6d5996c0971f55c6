"""Label Studio's API as far as it is about one project."""

from contract.label_studio import LabelStudioClient, RetryPolicy


class ProjectClient(LabelStudioClient):
    """A client that knows which project it is for."""

    def __init__(self, url: str, token: str, project: int, retries: RetryPolicy | None = None) -> None:
        super().__init__(url, token, retries=retries)
        self.project = project
        """The number in the project's address."""
        self.path = f"/api/projects/{project}/"
        self.what = f"project {project}"
