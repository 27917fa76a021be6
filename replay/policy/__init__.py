"""What to mirror, where to and how much: policies in our own language, Istio's, the Gateway API's and Envoy's, as ordered routes.

Percentages, YAML and the names of clusters do not leave this package; `compiled` is what the engine gets.
"""

from replay.policy.diagnose import PolicyError
from replay.policy.load import MESHES, load
from replay.policy.model import Policy
from replay.policy.names import Names

__all__ = ["MESHES", "Names", "Policy", "PolicyError", "load"]
