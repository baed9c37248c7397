"""Makes the small seeds of the corpus; run once, from the repository. What fuzzing found worth keeping lies beside them."""
import base64, json, pathlib
root = pathlib.Path(__file__).parent / "corpus"
def put(target, name, data):
    (root / target).mkdir(parents=True, exist_ok=True)
    (root / target / name).write_bytes(data)
vectors = json.loads((pathlib.Path(__file__).parent.parent / "tests/vectors/tokens.json").read_text())
for n in [0, 2, 3, 9]:
    put("token", f"seed-{n}", vectors[n]["token"].encode())
for n in [0, 2]:
    payload = vectors[n]["token"].split(".")[1]
    put("token", f"seed-claims-{n}", base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
put("token", "seed-bearer", b"Bearer " + vectors[0]["token"].encode())
put("cri", "seed-full", b"2026-11-23T12:00:00.123456789Z stdout F hello\n2026-11-23T12:00:00.5Z stderr P part")
put("cri", "seed-offset", b"2026-11-23T12:00:00+02:00 stdout F\n2026-11-23T12:00:01Z stdout F:lost=3/40 x")
put("sdl", "seed-small", b'version: "2.0"\nservices: {web: {image: x, command: [sh], env: ["A=b"]}}\ndeployment: {web: {here: {count: 1}}}\n')
def field(number, kind, data):
    return bytes([number << 3 | kind]) + data
def text(number, value):
    return field(number, 2, bytes([len(value)]) + value)
owner, provider = b"akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev", b"akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0"
lease = text(1, owner) + field(2, 0, b"\x07") + field(3, 0, b"\x01") + field(4, 0, b"\x01") + text(5, provider)
put("request", "seed-lease", text(1, lease))
put("request", "seed-filter", text(1, lease) + text(2, text(1, b"web") + field(2, 2, b"\x01\x00")) + field(3, 0, b"\x01"))
put("request", "seed-names", text(1, lease) + text(2, b"web") + text(2, b"ha"))
