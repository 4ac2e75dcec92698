"""hawkBit's Management API over HTTP, on a `State`: what an operator and `mpota` do to it.

`Management.add_to` puts it into the application that serves the devices. Answers, statuses and
error bodies are hawkBit's (mgmt/rest/resource, RestConfiguration).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar, cast
from urllib.parse import quote

from aiohttp import BodyPartReader, web

from mpota.virtual.hawkbit.device import sleep
from mpota.virtual.hawkbit.faults import Faults
from mpota.virtual.hawkbit.query import search
from mpota.virtual.hawkbit.rollouts import Conditions, Group, Rollout, Rollouts
from mpota.virtual.hawkbit.state import (
    Action,
    Artifact,
    DistributionSet,
    ForceType,
    Module,
    Refusal,
    State,
    StatusEntry,
    Target,
)

_V1 = "/rest/v1/"
_MAX_PAGE = 500
_MAX_ARTIFACT_SIZE = 64 << 20
_OVERDUE_MS = 300_000
_PREFIX = "hawkbit.server.error."
_CODES = {
    400: "repo.constraintViolation",
    403: "insufficientPermission",
    404: "repo.entityNotFound",
    405: "action.notCancelable",
    409: "repo.entityAlreadyExists",
    423: "locked",
    429: "quota.tooManyEntries",
}
_Answer = tuple[int, object]
_Handler = Callable[[web.Request], Awaitable[_Answer]]
T = TypeVar("T")


class Management:
    """``users``: their passwords by name. ``faults`` match method and path behind ``/rest/v1``;
    ``requests`` are those that came, as ``POST /rollouts 201``.
    """

    def __init__(self, state: State, users: Mapping[str, str] | None = None) -> None:
        self.state = state
        self.users = dict(users or {"admin": "admin"})
        self.faults = Faults()
        self.requests: list[str] = []
        self.rollouts = Rollouts(state, self._matching)

    def add_to(self, application: web.Application) -> None:
        application.middlewares.append(self._advancing)
        for method, path, handler in self._routes():
            application.router.add_route(method, _V1 + path, self._serving(handler))
        application.router.add_route("*", _V1 + "{rest:.*}", self._serving(_unknown))

    def _routes(self) -> list[tuple[str, str, _Handler]]:
        target, action = "targets/{target}", "targets/{target}/actions/{action}"
        module, set_ = "softwaremodules/{module}", "distributionsets/{set}"
        rollout = "rollouts/{rollout}"
        return [
            ("GET", "userinfo", self._get_user),
            ("GET", "system/configs/{key}", self._get_config),
            ("PUT", "system/configs/{key}", self._put_config),
            ("GET", "targets", self._list_targets),
            ("POST", "targets", self._post_targets),
            ("GET", target, self._get_target),
            ("DELETE", target, self._delete_target),
            ("GET", f"{target}/attributes", self._get_attributes),
            ("GET", f"{target}/installedDS", self._get_installed),
            ("GET", f"{target}/assignedDS", self._get_assigned),
            ("GET", f"{target}/actions", self._list_target_actions),
            ("GET", action, self._get_action),
            ("PUT", action, self._put_action),
            ("DELETE", action, self._cancel_action),
            ("GET", f"{action}/status", self._list_entries),
            ("GET", "actions", self._list_actions),
            ("GET", "softwaremodules", self._list_modules),
            ("POST", "softwaremodules", self._post_modules),
            ("GET", module, self._get_module),
            ("GET", f"{module}/artifacts", self._list_artifacts),
            ("POST", f"{module}/artifacts", self._post_artifact),
            ("GET", f"{module}/metadata", self._list_metadata),
            ("POST", f"{module}/metadata", self._post_metadata),
            ("PUT", module + "/metadata/{key}", self._put_metadata),
            ("GET", "distributionsets", self._list_sets),
            ("POST", "distributionsets", self._post_sets),
            ("GET", set_, self._get_set),
            ("POST", f"{set_}/assignedSM", self._post_set_modules),
            ("GET", f"{set_}/assignedTargets", self._list_assigned),
            ("POST", f"{set_}/assignedTargets", self._post_assigned),
            ("GET", f"{set_}/installedTargets", self._list_installed),
            ("GET", "rollouts", self._list_rollouts),
            ("POST", "rollouts", self._post_rollout),
            ("GET", rollout, self._get_rollout),
            ("POST", rollout + "/{verb}", self._step_rollout),
            ("GET", f"{rollout}/deploygroups", self._list_groups),
            ("GET", rollout + "/deploygroups/{group}/targets", self._list_group_targets),
        ]

    # --- around each request

    @property
    def _advancing(self) -> Any:
        @web.middleware
        async def advance(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            self.rollouts.advance()
            return await handler(request)

        return advance

    def _serving(self, handler: _Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def serve(request: web.Request) -> web.Response:
            path = "/" + request.rel_url.raw_path_qs.removeprefix(_V1)
            fault = self.faults.take(request.method, path)
            if fault is not None and fault.status:
                response = web.Response(
                    status=fault.status, reason="", body=fault.body, headers=fault.headers
                )
                response.content_type = "application/json"
            elif fault is not None and fault.is_unheard:
                response = web.Response(status=500)
            else:
                response = await self._answer(request, handler)
            is_silent = fault is not None and (fault.is_lost or fault.is_unheard)
            status = 0 if is_silent else response.status
            self.requests.append(f"{request.method} {path.partition('?')[0]} {status}")
            if is_silent and request.transport is not None:
                request.transport.abort()
            return response

        return serve

    async def _answer(self, request: web.Request, handler: _Handler) -> web.Response:
        if not self._is_known(request.headers.get("Authorization", "")):
            challenge = {"WWW-Authenticate": 'Basic realm="hawkBit"'}
            return web.Response(status=401, reason="", headers=challenge)
        try:
            status, body = await handler(request)
        except Refusal as refusal:
            status, body = refusal.status, _error(refusal)
        except (KeyError, TypeError, ValueError, AttributeError):
            status, body = 400, _error(Refusal(400), "rest.body.notReadable")
        if body is None:
            return web.Response(status=status, reason="")
        data = json.dumps(body).encode()
        response = web.Response(status=status, reason="", body=data)
        response.content_type = "application/hal+json"
        return response

    def _is_known(self, authorization: str) -> bool:
        scheme, _, word = authorization.partition(" ")
        try:
            user, _, password = base64.b64decode(word, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return False
        known = self.users.get(user)
        return (
            scheme == "Basic"
            and known is not None
            and hmac.compare_digest(known.encode(), password.encode())
        )

    # --- the tenant

    async def _get_user(self, request: web.Request) -> _Answer:
        return 200, {"tenant": self.state.tenant, "username": "admin", "permissions": []}

    async def _get_config(self, request: web.Request) -> _Answer:
        key = request.match_info["key"]
        if key not in self.state.config:
            raise Refusal(400, "The given configuration key is invalid.")
        return 200, {"value": self.state.config[key], "global": False}

    async def _put_config(self, request: web.Request) -> _Answer:
        key = request.match_info["key"]
        if key not in self.state.config:
            raise Refusal(400, "The given configuration key is invalid.")
        value = (await request.json())["value"]
        if type(value) is not type(self.state.config[key]):
            raise Refusal(400, "The given configuration value is invalid.")
        self.state.config[key] = value
        return 204, None

    # --- targets

    def _matching(self, query: str | None) -> list[Target]:
        fields: dict[str, Callable[[Target], object]] = {
            "id": lambda target: target.id,
            "controllerid": lambda target: target.id,
            "name": lambda target: target.name,
            "updatestatus": lambda target: target.update_status,
        }
        return search(self.state.targets.values(), query, fields)

    def _target(self, request: web.Request) -> Target:
        id = request.match_info["target"]
        found = self.state.targets.get(id)
        if found is None:
            raise Refusal(404, f"Target with given identifier {{{id}}} does not exist.")
        return found

    def _target_json(self, target: Target) -> dict[str, Any]:
        found: dict[str, Any] = {
            "createdBy": target.created_by,
            "createdAt": target.created_at,
            "name": target.name,
            "controllerId": target.id,
            "updateStatus": target.update_status,
            "securityToken": target.token,
            "requestAttributes": target.wants_attributes,
        }
        if target.polled_at is not None:
            due = target.polled_at + _interval_ms(self.state)
            found["lastControllerRequestAt"] = target.polled_at
            found["pollStatus"] = {
                "lastRequestAt": target.polled_at,
                "nextExpectedRequestAt": due,
                "overdue": self.state.now() > due + _OVERDUE_MS,
            }
        if target.installed_at is not None:
            found["installedAt"] = target.installed_at
        return found

    async def _list_targets(self, request: web.Request) -> _Answer:
        found = self._matching(request.query.get("q"))
        return _page(request, found, self._target_json)

    async def _post_targets(self, request: web.Request) -> _Answer:
        bodies = await request.json()
        ids = [body["controllerId"] for body in bodies]
        if len(set(ids)) < len(ids) or any(id in self.state.targets for id in ids):
            raise Refusal(409, "The given entity already exists in database")
        made = [
            self.state.add_target(
                body["controllerId"], body.get("securityToken"), body.get("name") or ""
            )
            for body in bodies
        ]
        return 201, [self._target_json(target) for target in made]

    async def _get_target(self, request: web.Request) -> _Answer:
        return 200, self._target_json(self._target(request))

    async def _delete_target(self, request: web.Request) -> _Answer:
        self.state.remove_target(self._target(request).id)
        return 204, None

    async def _get_attributes(self, request: web.Request) -> _Answer:
        found = self._target(request).attributes
        return (200, found) if found else (204, None)

    async def _get_installed(self, request: web.Request) -> _Answer:
        found = self._target(request).installed
        return (200, _set_json(found)) if found else (204, None)

    async def _get_assigned(self, request: web.Request) -> _Answer:
        found = self._target(request).assigned
        return (200, _set_json(found)) if found else (204, None)

    # --- actions

    def _action(self, request: web.Request) -> Action:
        target, number = self._target(request), request.match_info["action"]
        found = self.state.actions.get(int(number)) if number.isdecimal() else None
        if found is None or found.target is not target:
            raise Refusal(404, f"Action with given identifier {{{number}}} does not exist.")
        return found

    def _action_json(self, request: web.Request, action: Action, *, is_full: bool) -> object:
        root = f"{request.scheme}://{request.host}{_V1}"
        entries = action.entries
        found: dict[str, Any] = {
            "id": action.id,
            "type": "cancel" if action.status in ("canceling", "canceled") else "update",
            "active": action.active,
            "status": action.status,
            "forceType": action.force_type,
            "weight": action.weight,
            "createdAt": entries[0].reported_at if entries else self.state.now(),
            "lastModifiedAt": entries[-1].reported_at if entries else self.state.now(),
        }
        if action.code is not None:
            found["lastStatusCode"] = action.code
        if place := self.rollouts.group_of(action):
            found |= {"rollout": place[0].id, "rolloutName": place[0].name}
        if is_full:
            target, wanted = action.target, action.set
            found["_links"] = {
                "target": {
                    "href": f"{root}targets/{quote(target.id, safe='')}",
                    "name": target.name,
                },
                "distributionset": {
                    "href": f"{root}distributionsets/{wanted.id}",
                    "name": f"{wanted.name}:{wanted.version}",
                },
            }
        return found

    async def _list_target_actions(self, request: web.Request) -> _Answer:
        target = self._target(request)
        mine = [one for one in self.state.actions.values() if one.target is target]
        return self._actions(request, mine)

    async def _list_actions(self, request: web.Request) -> _Answer:
        return self._actions(request, self.state.actions.values())

    def _actions(self, request: web.Request, actions: Iterable[Action]) -> _Answer:
        fields: dict[str, Callable[[Action], object]] = {
            "id": lambda action: action.id,
            "active": lambda action: str(action.active).lower(),
            "status": lambda action: action.status,
            "target.controllerid": lambda action: action.target.id,
        }
        found = search(actions, request.query.get("q"), fields)
        is_full = request.query.get("representation") == "full"
        return _page(request, found, lambda one: self._action_json(request, one, is_full=is_full))

    async def _get_action(self, request: web.Request) -> _Answer:
        return 200, self._action_json(request, self._action(request), is_full=True)

    async def _put_action(self, request: web.Request) -> _Answer:
        action = self._action(request)
        if (await request.json())["forceType"] != "forced":
            raise Refusal(400)
        self.state.force(action)
        return 200, self._action_json(request, action, is_full=True)

    async def _cancel_action(self, request: web.Request) -> _Answer:
        is_forced = request.query.get("force") == "true"
        self.state.cancel(self._action(request), force=is_forced)
        return 204, None

    async def _list_entries(self, request: web.Request) -> _Answer:
        numbered = list(enumerate(self._action(request).entries, 1))
        return _page(request, numbered, lambda one: _entry_json(*one))

    # --- modules

    def _module(self, request: web.Request) -> Module:
        number = request.match_info["module"]
        found = self.state.modules.get(int(number)) if number.isdecimal() else None
        if found is None:
            raise Refusal(404, f"SoftwareModule with given identifier {{{number}}} does not exist.")
        return found

    async def _list_modules(self, request: web.Request) -> _Answer:
        fields: dict[str, Callable[[Module], object]] = {
            "id": lambda module: module.id,
            "name": lambda module: module.name,
            "version": lambda module: module.version,
            "type": lambda module: module.type,
        }
        found = search(self.state.modules.values(), request.query.get("q"), fields)
        return _page(request, found, _module_json)

    async def _post_modules(self, request: web.Request) -> _Answer:
        bodies = await request.json()
        made = [
            self.state.add_module(body["name"], body["version"], body["type"]) for body in bodies
        ]
        return 201, [_module_json(module) for module in made]

    async def _get_module(self, request: web.Request) -> _Answer:
        return 200, _module_json(self._module(request))

    async def _list_artifacts(self, request: web.Request) -> _Answer:
        found = self._module(request).artifacts.values()
        return 200, [_artifact_json(number, one) for number, one in enumerate(found, 1)]

    async def _post_artifact(self, request: web.Request) -> _Answer:
        module = self._module(request)
        part = await (await request.multipart()).next()
        if not isinstance(part, BodyPartReader) or part.name != "file" or not part.filename:
            raise Refusal(400, "Required part 'file' is not present.")
        data = bytearray()
        while chunk := await part.read_chunk(1 << 16):
            data += chunk
            if len(data) > _MAX_ARTIFACT_SIZE:
                raise Refusal(429, "File exceeds size quota.")
        if any(set_.locked and module in set_.modules for set_ in self.state.sets.values()):
            raise Refusal(423, "Entry is locked. Could not be functionally modified")
        wanted = request.query.get("sha256sum", "")
        if wanted and wanted != hashlib.sha256(data).hexdigest():
            raise Refusal(400, "Upload of artifact failed as the provided SHA256 did not match")
        made = self.state.add_artifact(module, part.filename, bytes(data))
        return 201, _artifact_json(len(module.artifacts), made)

    async def _list_metadata(self, request: web.Request) -> _Answer:
        found = self._module(request).metadata
        return _page(request, found, lambda one: _metadata_json(*one), is_sorted=False)

    async def _post_metadata(self, request: web.Request) -> _Answer:
        module, bodies = self._module(request), await request.json()
        given = [(one["key"], one["value"], bool(one.get("targetVisible"))) for one in bodies]
        if {key for key, *_ in given} & {key for key, *_ in module.metadata}:
            raise Refusal(409, "The given entity already exists in database")
        if any(len(key) > 128 or len(value) > 4000 for key, value, _ in given):
            raise Refusal(400, "metadata is too long")
        module.metadata += given
        return 201, [_metadata_json(*one) for one in given]

    async def _put_metadata(self, request: web.Request) -> _Answer:
        module, key = self._module(request), request.match_info["key"]
        body = await request.json()
        for at, (name, _, is_seen) in enumerate(module.metadata):
            if name == key:
                module.metadata[at] = key, body["value"], bool(body.get("targetVisible", is_seen))
                return 200, _metadata_json(*module.metadata[at])
        raise Refusal(404, f"Metadata with given identifier {{{key}}} does not exist.")

    # --- distribution sets

    def _set(self, request: web.Request) -> DistributionSet:
        number = request.match_info["set"]
        return self._set_of(int(number) if number.isdecimal() else 0)

    def _set_of(self, number: int) -> DistributionSet:
        found = self.state.sets.get(number)
        if found is None:
            raise Refusal(
                404, f"DistributionSet with given identifier {{{number}}} does not exist."
            )
        return found

    async def _list_sets(self, request: web.Request) -> _Answer:
        fields: dict[str, Callable[[DistributionSet], object]] = {
            "id": lambda one: one.id,
            "name": lambda one: one.name,
            "version": lambda one: one.version,
        }
        found = search(self.state.sets.values(), request.query.get("q"), fields)
        return _page(request, found, _set_json)

    async def _post_sets(self, request: web.Request) -> _Answer:
        made = []
        for body in await request.json():
            modules = [self._module_of(one["id"]) for one in body.get("modules", [])]
            made.append(self.state.add_set(body["name"], body["version"], modules, body["type"]))
        return 201, [_set_json(one) for one in made]

    def _module_of(self, number: int) -> Module:
        found = self.state.modules.get(number)
        if found is None:
            raise Refusal(404, f"SoftwareModule with given identifier {{{number}}} does not exist.")
        return found

    async def _get_set(self, request: web.Request) -> _Answer:
        return 200, _set_json(self._set(request))

    async def _post_set_modules(self, request: web.Request) -> _Answer:
        found = self._set(request)
        if found.locked:
            raise Refusal(423, "Entry is locked. Could not be functionally modified")
        for body in await request.json():
            module = self._module_of(body["id"])
            if module not in found.modules:
                found.modules.append(module)
        return 200, None

    async def _list_assigned(self, request: web.Request) -> _Answer:
        found, wanted = self._matching(request.query.get("q")), self._set(request)
        mine = [target for target in found if target.assigned is wanted]
        return _page(request, mine, self._target_json)

    async def _list_installed(self, request: web.Request) -> _Answer:
        found, wanted = self._matching(request.query.get("q")), self._set(request)
        mine = [target for target in found if target.installed is wanted]
        return _page(request, mine, self._target_json)

    async def _post_assigned(self, request: web.Request) -> _Answer:
        wanted, bodies, made = self._set(request), await request.json(), []
        for body in bodies:
            target = self.state.targets.get(body["id"])
            if target is None:
                continue
            action = self.state.assign(
                wanted,
                target,
                cast(ForceType, body.get("type", "forced")),
                force_time=int(body.get("forcetime", 0)),
                confirmation=bool(body.get("confirmationRequired", True)),
            )
            made += [{"id": action.id}] if action else []
        already = len(bodies) - len(made)
        return 200, {
            "assigned": len(made),
            "alreadyAssigned": already,
            "total": len(bodies),
            "assignedActions": made,
        }

    # --- rollouts

    async def _list_rollouts(self, request: web.Request) -> _Answer:
        fields: dict[str, Callable[[Rollout], object]] = {
            "id": lambda rollout: rollout.id,
            "name": lambda rollout: rollout.name,
            "status": lambda rollout: rollout.status,
        }
        found = search(self.rollouts.all.values(), request.query.get("q"), fields)
        is_full = request.query.get("representation") == "full"
        return _page(request, found, lambda one: _rollout_json(one, is_full=is_full))

    async def _post_rollout(self, request: web.Request) -> _Answer:
        body = await request.json()
        rollout = self._rollout_of(body)
        self.rollouts.add(rollout)
        return 201, _rollout_json(rollout, is_full=True)

    def _rollout_of(self, body: dict[str, Any]) -> Rollout:
        if body.get("groups") is not None and body.get("amountGroups") is not None:
            raise Refusal(
                400, "If 'group' is set the 'amountGroups' must not be set in the request"
            )
        count = int(body.get("amountGroups") or 1)
        even: list[dict[str, Any]] = [
            {"name": f"group-{n}", "targetPercentage": 100 / count} for n in range(1, count + 1)
        ]
        numbers = itertools.count(
            1 + max((g.id for r in self.rollouts.all.values() for g in r.groups), default=0)
        )
        shared = _conditions(body, Conditions())
        groups = [
            Group(
                next(numbers),
                one["name"],
                one.get("description", one["name"]),
                float(one["targetPercentage"]),
                _conditions(one, shared),
            )
            for one in body.get("groups") or even
        ]
        return Rollout(
            1 + max(self.rollouts.all, default=0),
            body["name"],
            body.get("description", ""),
            self._set_of(body["distributionSetId"]),
            body["targetFilterQuery"],
            cast(ForceType, body.get("type", "forced")),
            groups,
            self.state.now(),
        )

    async def _get_rollout(self, request: web.Request) -> _Answer:
        return 200, _rollout_json(self.rollouts.find(request.match_info["rollout"]), is_full=True)

    async def _step_rollout(self, request: web.Request) -> _Answer:
        rollout = self.rollouts.find(request.match_info["rollout"])
        steps = {
            "start": self.rollouts.start,
            "pause": self.rollouts.pause,
            "resume": self.rollouts.resume,
            "stop": self.rollouts.stop,
            "triggerNextGroup": self.rollouts.trigger_next,
        }
        step = steps.get(request.match_info["verb"])
        if step is None:
            raise Refusal(404)
        step(rollout)
        return 204, None

    async def _list_groups(self, request: web.Request) -> _Answer:
        rollout = self.rollouts.find(request.match_info["rollout"])
        is_full = request.query.get("representation") == "full"
        return _page(request, rollout.groups, lambda one: _group_json(one, is_full=is_full))

    async def _list_group_targets(self, request: web.Request) -> _Answer:
        rollout = self.rollouts.find(request.match_info["rollout"])
        for group in rollout.groups:
            if str(group.id) == request.match_info["group"]:
                return _page(request, group.targets, self._target_json)
        raise Refusal(404)


# --- pieces of answers


async def _unknown(request: web.Request) -> _Answer:
    raise Refusal(404, "no such resource")


def _error(refusal: Refusal, code: str | None = None) -> dict[str, str]:
    """The body that hawkBit's errors have."""
    return {
        "exceptionClass": "org.eclipse.hawkbit.repository.exception.AbstractServerRtException",
        "errorCode": _PREFIX + (code or _CODES.get(refusal.status, "repo.genericError")),
        "message": str(refusal),
    }


def _page(
    request: web.Request,
    found: Iterable[T],
    shape: Callable[[T], object],
    *,
    is_sorted: bool = True,
) -> _Answer:
    """One page of a list, which is in the order of ids. Raises Refusal (400)."""
    rows = list(found)
    name, _, direction = request.query.get("sort", "id:ASC").partition(":")
    if is_sorted and name.lower() not in ("id", "controllerid"):
        raise Refusal(400, "The given sort parameter field does not exist")
    if direction.upper() == "DESC":
        rows.reverse()
    start = int(request.query.get("offset", "0"))
    limit = min(int(request.query.get("limit", "50")), _MAX_PAGE)
    if start < 0 or limit < 1:
        raise Refusal(400)
    page = [shape(row) for row in rows[start : start + limit]]
    return 200, {"content": page, "total": len(rows), "size": len(page)}


def _interval_ms(state: State) -> int:
    hours, minutes, seconds = (int(part) for part in sleep(state).split(":"))
    return 1000 * (hours * 3600 + minutes * 60 + seconds)


def _entry_json(number: int, entry: StatusEntry) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": number,
        "type": entry.type,
        "messages": list(entry.messages),
        "reportedAt": entry.reported_at,
        "timestamp": entry.timestamp,
    }
    return found if entry.code is None else {**found, "code": entry.code}


def _module_json(module: Module) -> dict[str, Any]:
    return {
        "id": module.id,
        "name": module.name,
        "version": module.version,
        "type": module.type,
        "encrypted": module.encrypted,
        "deleted": False,
        "complete": bool(module.artifacts),
    }


def _artifact_json(number: int, artifact: Artifact) -> dict[str, Any]:
    return {
        "id": number,
        "hashes": artifact.hashes,
        "providedFilename": artifact.filename,
        "size": len(artifact.data),
    }


def _metadata_json(key: str, value: str, is_seen: bool) -> dict[str, Any]:
    return {"key": key, "value": value, "targetVisible": is_seen}


def _set_json(found: DistributionSet) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "version": found.version,
        "type": found.type,
        "locked": found.locked,
        "deleted": False,
        "valid": True,
        "complete": bool(found.modules),
        "modules": [_module_json(module) for module in found.modules],
    }


def _conditions(body: Mapping[str, Any], former: Conditions) -> Conditions:
    success = (body.get("successCondition") or {}).get("expression", former.success)
    error = (body.get("errorCondition") or {}).get("expression", former.error)
    for one in (success, error):
        if not 0 <= int(one) <= 100:
            raise Refusal(400, f"the threshold {one} is no percentage")
    return Conditions(success, error)


def _rollout_json(rollout: Rollout, *, is_full: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": rollout.id,
        "name": rollout.name,
        "description": rollout.description,
        "distributionSetId": rollout.set.id,
        "targetFilterQuery": rollout.filter,
        "status": rollout.status,
        "type": rollout.type,
        "totalTargets": len(list(rollout.targets)),
        "createdAt": rollout.created_at,
        "deleted": False,
        "dynamic": False,
    }
    more = {"totalTargetsPerStatus": rollout.counts(), "totalGroups": len(rollout.groups)}
    return {**found, **more} if is_full else found


def _group_json(group: Group, *, is_full: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": group.id,
        "name": group.name,
        "description": group.description,
        "status": group.status,
        "targetPercentage": group.percentage,
        "totalTargets": len(group.targets),
        "successCondition": {"condition": "THRESHOLD", "expression": group.conditions.success},
        "successAction": {"action": "NEXTGROUP", "expression": ""},
        "errorCondition": {"condition": "THRESHOLD", "expression": group.conditions.error},
        "errorAction": {"action": "PAUSE", "expression": ""},
    }
    return {**found, "totalTargetsPerStatus": group.counts()} if is_full else found
