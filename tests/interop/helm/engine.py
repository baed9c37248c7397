"""The real Helm, a Go library from the Python package helm-sdkpy, called without that package's own Python code."""

import base64
import ctypes
import gzip
import http.server
import json
import re
import tempfile
import threading

NAMESPACE = "akash-services"
RELEASE = "leasemux"

# Resources that the stand-in of the API server knows: group and version, plural, kind, namespaced.
RESOURCES = [
    ("v1", "configmaps", "ConfigMap", True),
    ("v1", "secrets", "Secret", True),
    ("v1", "serviceaccounts", "ServiceAccount", True),
    ("v1", "services", "Service", True),
    ("apps/v1", "daemonsets", "DaemonSet", True),
    ("apps/v1", "deployments", "Deployment", True),
    ("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", True),
    ("monitoring.coreos.com/v1", "prometheusrules", "PrometheusRule", True),
    ("monitoring.coreos.com/v1", "servicemonitors", "ServiceMonitor", True),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", True),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", True),
    ("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding", False),
    ("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", False),
    ("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding", True),
    ("rbac.authorization.k8s.io/v1", "roles", "Role", True),
]

# Message of the stand-in when it has the rendered release.
RENDERED = "the release is rendered"


class Helm:
    """Renders and lints charts."""

    def __init__(self, library):
        self._server = ApiServer()
        self._library = ctypes.CDLL(str(library))
        self._library.helm_sdkpy_last_error.restype = ctypes.c_char_p
        cluster = {"name": "c", "cluster": {"server": self._server.url}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "contexts": [context],
            "current-context": "c",
            "users": [{"name": "u", "user": {}}],
        }
        # It is read again by each call.
        self._config = tempfile.NamedTemporaryFile("w", suffix=".json")
        json.dump(config, self._config)
        self._config.flush()
        self._handle = ctypes.c_ulonglong()
        arguments = NAMESPACE.encode(), self._config.name.encode(), None, b"{}", ctypes.byref(self._handle)
        self._check(self._library.helm_sdkpy_config_create(*arguments))

    def render(self, chart, values):
        """Returns the manifest and the notes. Raises RuntimeError if Helm rejects the values."""
        self._server.release = None
        options = {"disable_openapi_validation": True}
        try:
            self._call("install", RELEASE, str(chart), json.dumps(values), "", json.dumps(options))
        except RuntimeError as error:
            if RENDERED not in str(error):
                raise
        release = self._server.release
        return release["manifest"], release["info"]["notes"]

    def lint(self, chart):
        """Returns the result of `helm lint`."""
        return self._call("lint", str(chart))

    def _call(self, function, *arguments):
        result = ctypes.c_char_p()
        encoded = [argument.encode() if isinstance(argument, str) else argument for argument in arguments]
        call = getattr(self._library, f"helm_sdkpy_{function}")
        self._check(call(self._handle, *encoded, ctypes.byref(result)))
        return json.loads(result.value)

    def _check(self, code):
        if code:
            raise RuntimeError((self._library.helm_sdkpy_last_error() or b"unknown error").decode())


class ApiServer(http.server.ThreadingHTTPServer):
    """A stand-in of an API server without objects.

    Helm has no rendering of its own in this library, so it installs. The first thing that it stores is a secret with the
    rendered release. The stand-in keeps the release and refuses the secret, which ends the installation.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.release = None
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.partition("?")[0]
        groups = sorted({group for group, *_ in RESOURCES if "/" in group})
        if path == "/version":
            return self.respond(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
        if path == "/api":
            return self.respond(200, {"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            listed = [self.group(group) for group in groups]
            return self.respond(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed})
        for group in ["v1", *groups]:
            if path == (f"/apis/{group}" if "/" in group else "/api/v1"):
                return self.respond(200, self.resources(group))
        if path == f"/api/v1/namespaces/{NAMESPACE}/secrets":
            return self.respond(200, {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []})
        return self.refuse(404, "NotFound", "not found")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        # The secret is encoded as protobuf. Its only long text is the release: base64 of gzip of JSON.
        encoded = max(re.findall(rb"[A-Za-z0-9+/=]{64,}", body), key=len)
        self.server.release = json.loads(gzip.decompress(base64.b64decode(encoded)))
        self.refuse(403, "Forbidden", RENDERED)

    @staticmethod
    def group(group):
        version = {"groupVersion": group, "version": group.split("/")[1]}
        return {"name": group.split("/")[0], "versions": [version], "preferredVersion": version}

    @staticmethod
    def resources(group):
        listed = [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": namespaced, "verbs": ["get"]}
            for of, plural, kind, namespaced in RESOURCES
            if of == group
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": listed}

    def refuse(self, code, reason, message):
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
        self.respond(code, {**status, "code": code, "reason": reason, "message": message})

    def respond(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
