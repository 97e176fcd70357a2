# SPDX-License-Identifier: LGPL-2.1-or-later
"""May this peer make this call? The one place that decides, in this order:

1. the policy of the socket: the method, before its parameters are looked at; after validation the parameters;
2. the kernel: what changes nothing needs no more, and uid 0 is asked nothing, as polkit would say yes to it anyway;
   what is the service's own is for root and its own user;
3. polkit, about actions of our own, unless the policy says that it decides alone.

What is asked is what is done: the parameters are normalized before, and the method gets the same ones.
"""

import json
import os

from .errors import PermissionDenied, Refusal
from .machines import HOST
from .messages import Parameters, Peer
from .methods import Method
from .policy import Policy
from .polkit import Polkit

# The action that polkit is asked about, and its detail `verb`.
ACTIONS = {
    "io.machine1.ListMachines": ("io.machine1.inspect-machines", "list"),
    "io.machine1.GetMachine": ("io.machine1.inspect-machines", "get"),
    "io.machine1.GetMachineByPID": ("io.machine1.inspect-machines", "get-by-pid"),
    "io.machine1.TerminateMachine": ("io.machine1.manage-machines", "terminate"),
    "io.machine1.KillMachine": ("io.machine1.manage-machines", "kill"),
    "io.machine1.PoweroffMachine": ("io.machine1.manage-machines", "poweroff"),
    "io.machine1.RebootMachine": ("io.machine1.manage-machines", "reboot"),
    "io.machine1.StartMachine": ("io.machine1.manage-machines", "start"),
    "io.machine1.UnregisterMachine": ("io.machine1.manage-machines", "unregister"),
    "io.machine1.OpenMachineLogin": ("io.machine1.open-login", "open-login"),
    "io.machine1.OpenMachinePTY": ("io.machine1.open-pty", "open-pty"),
    "io.machine1.OpenMachineRootDirectory": ("io.machine1.open-root-directory", "open-root-directory"),
    "io.machine1.OpenMachineShell": ("io.machine1.open-shell", "open-shell"),
    "io.machine1.CopyFromMachine": ("io.machine1.copy", "copy-from"),
    "io.machine1.CopyToMachine": ("io.machine1.copy", "copy-to"),
    "io.machine1.BindMountMachine": ("io.machine1.bind-mount", "bind-mount"),
    "io.machine1.RemoveImage": ("io.machine1.manage-images", "remove"),
    "io.machine1.CloneImage": ("io.machine1.manage-images", "clone"),
    "io.machine1.RenameImage": ("io.machine1.manage-images", "rename"),
    "io.machine1.MarkImageReadOnly": ("io.machine1.manage-images", "mark-read-only"),
    "io.machine1.SetImageLimit": ("io.machine1.manage-images", "set-limit"),
    "io.machine1.ListImages": ("io.machine1.inspect-images", "list-images"),
    "io.machine1.GetImage": ("io.machine1.inspect-images", "get-image"),
    "io.machine1.SetPoolLimit": ("io.machine1.manage-pool", "set-pool-limit"),
    "io.machine1.CleanPool": ("io.machine1.manage-pool", "clean-pool"),
    "io.machine1.ImportTar": ("io.machine1.import-images", "import-tar"),
    "io.machine1.ImportRaw": ("io.machine1.import-images", "import-raw"),
    "io.machine1.ExportTar": ("io.machine1.export-images", "export-tar"),
    "io.machine1.ExportRaw": ("io.machine1.export-images", "export-raw"),
    "io.machine1.PullTar": ("io.machine1.pull-images", "pull-tar"),
    "io.machine1.PullRaw": ("io.machine1.pull-images", "pull-raw"),
    "io.machine1.CancelTransfer": ("io.machine1.cancel-transfers", "cancel"),
}

# Parameters whose detail has another name; lists are JSON, so that no separator can be mistaken.
_DETAILS = {"path": "program", "args": "argv", "env": "environment"}


class Authorizer:
    """Asks a policy and polkit. The answers name who gave them: policy, kernel or polkit."""

    def __init__(self, policy: Policy, polkit: Polkit) -> None:
        self.policy = policy
        self._polkit = polkit

    def shows_machine(self, name: str) -> bool:
        """As the policy of now; this and the next are machined.Shown."""
        return self.policy.shows_machine(name)

    def shows_image(self, name: str) -> bool:
        return self.policy.shows_image(name)

    async def authorize(self, peer: Peer, name: str, method: Method, parameters: Parameters) -> str:
        """Who says yes. Raises what the policy raises, PermissionDenied, InteractiveAuthenticationRequired and Busy.

        `parameters` are validated and normalized.
        """
        self.policy.decide(name, parameters)
        if method.own:
            if peer.uid not in (0, os.geteuid()):
                raise PermissionDenied().refused(Refusal("kernel", "only root and the user of this service may"))
            return "kernel"
        if not method.guarded:
            return "policy"
        if peer.uid == 0:
            return "kernel"
        if not self.policy.polkit_required:
            return "policy"
        action, details = question(name, method, parameters)
        interactive = parameters.get("allowInteractiveAuthentication", False)
        await self._polkit.check(peer, action, details, interactive)
        self.policy.decide(name, parameters)  # it may be another one, after somebody had to find a password
        return "polkit"


def question(name: str, method: Method, parameters: Parameters) -> tuple[str, dict[str, str]]:
    """The action and its details: every parameter that says what would be done, and the verb."""
    if name not in ACTIONS:
        raise PermissionDenied().refused(Refusal("polkit", "there is no action for this method"))
    action, verb = ACTIONS[name]
    if name == "io.machine1.OpenMachineShell" and parameters["name"] == HOST:
        action = "io.machine1.open-host-shell"
    kinds = {parameter: "new_name" if kind == "new" else kind for kind, parameter in method.about.items()}
    details = {"verb": verb}
    for parameter, value in parameters.items():
        if parameter in ("allowInteractiveAuthentication", method.fd):
            continue
        key = kinds.get(parameter) or _DETAILS.get(parameter, parameter)
        details[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if action == "io.machine1.copy":
        details["direction"] = "out" if verb == "copy-from" else "in"
    return action, details
