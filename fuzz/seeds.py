"""Writes the seeds of the corpus. Run once, from the repository. Other files in the corpus are inputs that fuzzing found."""
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
def frame(opcode, payload, final=True):
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0xfe, size >> 8, size & 255])
    mask = b"\1\2\3\4"
    return bytes([0x80 * final | opcode]) + length + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
put("websocket", "seed-control", frame(9, b"ping") + frame(10, b"") + frame(8, b"\x03\xe8bye"))
put("websocket", "seed-fragments", frame(1, b"a" * 200, False) + frame(9, b"") + frame(0, b"b") + frame(10, b"\0\0\0\1"))
put("websocket", "seed-too-long", frame(2, b"c" * 4096) + frame(2, b"d" * 4097))
def field(number, kind, data):
    return bytes([number << 3 | kind]) + data
def text(number, value):
    return field(number, 2, bytes([len(value)]) + value)
owner, provider = b"akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev", b"akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0"
lease = text(1, owner) + field(2, 0, b"\x07") + field(3, 0, b"\x01") + field(4, 0, b"\x01") + text(5, provider)
put("request", "seed-lease", text(1, lease))
put("request", "seed-filter", text(1, lease) + text(2, text(1, b"web") + field(2, 2, b"\x01\x00")) + field(3, 0, b"\x01"))
for name, rest in [
    ("lease", b""),
    ("names", text(2, b"web") + text(2, b"ha")),
    ("empty-filter", text(2, b"")),
    ("filter", text(2, text(1, b"web") + field(2, 0, b"\x01")) + field(3, 0, b"\x01")),
    ("both", text(2, b"web") + field(3, 0, b"\x01")),
    ("additions", b"\xa0\x06\x05" + b"\xc2\x06\x05" + text(1, b"web")),
]:
    put("published", f"seed-{name}", text(1, lease) + rest)
put("query", "seed-cli", b"follow=true&services=web,api")
put("query", "seed-console", b"follow=false&tail=10000000&service=web%2Capi")
put("query", "seed-own", b"on_lag=close&notices=loss&tail=-1&follow=T")
put("query", "seed-names", b"web%2C,,Web;x&service=*")
put("request", "seed-names", text(1, lease) + text(2, b"web") + text(2, b"ha"))

def der(tag, *parts):
    content = b"".join(parts)
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else bytes([0x82, size >> 8, size & 255])
    return bytes([tag]) + length + content
def oid(text):
    return der(0x06, bytes.fromhex(text))
def extension(kind, critical, value):
    return der(0x30, oid(kind), der(0x01, b"\xff") if critical else b"", der(0x04, value))
ecdsa_with_sha256 = der(0x30, oid("2a8648ce3d040302"))
# The generator of P-256: the public key whose private one is 1.
point = bytes.fromhex("04" "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
                      "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")
name = der(0x30, der(0x31, der(0x30, oid("550403"), der(0x13, owner))))
key = der(0x30, der(0x30, oid("2a8648ce3d0201"), oid("2a8648ce3d030107")), der(0x03, b"\0" + point))
def head(not_before, not_after, serial=b"\x07"):
    return (der(0xa0, der(0x02, b"\x02")) + der(0x02, serial) + ecdsa_with_sha256 + name
            + der(0x30, not_before, not_after) + name + key)
usual = head(der(0x17, b"260101000000Z"), der(0x17, b"270101000000Z"))
(root.parent / "certificate-head.der").write_bytes(usual)
client = extension("551d25", False, der(0x30, oid("2b06010505070302")))
server_too = extension("551d25", True, der(0x30, oid("2b06010505070301"), oid("2b06010505070302")))
usage, no_authority = extension("551d0f", True, der(0x03, b"\x07\x80")), extension("551d13", True, der(0x30))
authority = extension("551d13", True, der(0x30, der(0x01, b"\xff"), der(0x02, b"\x01")))
constraints = extension("551d1e", True, der(0x30, der(0xa0, der(0x30, der(0x82, b"a")))))
put("certificate", "seed-content", der(0x30, usual, der(0xa3, der(0x30, usage, client))))
long = head(der(0x18, b"20260101000000Z"), der(0x18, b"99991231235959Z"), b"\0" + b"\xff" * 40)
put("certificate", "seed-content-long", der(0x30, long, der(0xa3, der(0x30, constraints, server_too, no_authority))))
put("certificate", "seed-extensions", usage + server_too + no_authority + constraints)
put("certificate", "seed-extensions-authority", client + authority)
put("certificate", "seed-extensions-unknown", client + extension("2a0304", True, b"\x05\0") + extension("551d11", False, der(0x30, der(0x82, b"a"))))

def varint(value):
    return (bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7))
def count(number, value):
    return field(number, 0, varint(value))
def fixed(number, value):
    return field(number, 1, value.to_bytes(8, "little"))
def part(number, *parts):
    content = b"".join(parts)
    return field(number, 2, varint(len(content)) + content)
def position(number, time, ordinal, offset=0):
    return part(number, fixed(1, time), count(2, ordinal), count(3, offset))
rank = count(1, 3) + fixed(2, 99)
totals, run = count(1, 10) + count(2, 100), b"uid/web/1"
place = part(1, run) + position(2, 5, 1)
lines = part(1, b"one\ntwo\n") + part(2, b"\4\4") + part(3, b"\0\2") + part(4, b"\1\2") + count(6, 1)
def frame(number, *rest):
    return part(1, rank) + count(2, number) + part(3, totals) + b"".join(rest)
whole = frame(7, part(4, run), position(5, 5, 1), position(6, 6, 1), part(7, lines))
piece = frame(8, part(4, run), position(5, 6, 1), position(6, 6, 1, 4), part(7, part(1, b"rest"), part(2, b"\4"), part(3, b"\2"), part(4, b"\2"), count(5, 1)))
gap = frame(9, part(4, run), position(5, 6, 1), position(6, 6, 1), part(8, count(1, 2), count(2, 5), count(3, 50), count(4, 1)))
head = part(1, rank) + count(2, 9) + part(3, totals) + part(4, place) + count(5, 1) + count(8, 1) + fixed(11, 77) + count(12, 2)
delimited = b"".join(varint(len(one)) + one for one in [whole, piece, gap])
for name, body in [
    ("alive", part(1, count(1, 500), count(2, 1))),
    ("lines", part(2, whole)),
    ("piece", part(2, piece)),
    ("gap", part(2, gap)),
    ("event", part(2, frame(3))),
    ("sync", part(3, head)),
    ("claim", part(4, part(1, rank), count(2, 1), part(3, place))),
    ("announcement", part(5, part(1, head), count(2, 1))),
    ("release", part(6, part(1, rank), part(2, rank))),
    ("fetch", part(9, part(1, rank), part(3, place), count(4, 9))),
    ("fetched", part(10, part(1, rank), part(2, delimited))),
    ("refused", part(10, part(1, rank), count(3, 1), part(4, count(1, 4), part(2, totals), part(3, place)))),
    ("request", part(12, part(1, b"/".join([owner, b"7/1/1", provider])), part(2, b"web"), count(3, 1), part(4, b"space"), part(5, b"pod"), part(6, place), count(7, 3))),
]:
    put("exchange", f"seed-{name}", body)
