"""All cases."""

from bench.hostile import images, references, requests

CASES = (*images.cases(), *references.cases(), *requests.cases())
