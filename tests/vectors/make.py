"""Makes tokens.json and wallets.json with other people's cryptography, for ours to be held against.

    python3 -m venv /tmp/vectors && . /tmp/vectors/bin/activate
    pip install coincurve==21.0.0 ecdsa==0.19.2 bip_utils==2.12.3
    python tests/vectors/make.py

Signatures come from libsecp256k1 (by coincurve) and from python-ecdsa, which was written apart from it; mnemonics, keys and
addresses from bip_utils. Everything is deterministic: run again, the script writes the same files.
"""

import base64
import hashlib
import json
import pathlib

import coincurve
import ecdsa
from bip_utils import Bip39MnemonicGenerator, Bip39SeedGenerator, Bip44, Bip44Changes, Bip44Coins
from ecdsa.util import sigencode_string_canonize

HERE = pathlib.Path(__file__).parent
ORDER = ecdsa.SECP256k1.order
NOT_BEFORE, EXPIRES = 1_760_000_000, 1_760_000_900


def wallet(mnemonic):
    seed = Bip39SeedGenerator(mnemonic).Generate()
    account = Bip44.FromSeed(seed, Bip44Coins.AKASH_NETWORK).Purpose().Coin().Account(0)
    key = account.Change(Bip44Changes.CHAIN_EXT).AddressIndex(0)
    return {
        "mnemonic": mnemonic,
        "seed": seed.hex(),
        "secret": key.PrivateKey().Raw().ToHex(),
        "public": key.PublicKey().RawCompressed().ToHex(),
        "address": key.PublicKey().ToAddress(),
    }


def fresh_wallet(text, size):
    entropy = hashlib.sha256(text.encode()).digest()[:size]
    return wallet(str(Bip39MnemonicGenerator().FromEntropy(entropy)))


def part(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


def adr36(signed, signer):
    document = {
        "account_number": "0",
        "chain_id": "",
        "fee": {"amount": [], "gas": "0"},
        "memo": "",
        "msgs": [
            {
                "type": "sign/MsgSignData",
                "value": {"data": base64.b64encode(signed).decode(), "signer": signer},
            }
        ],
        "sequence": "0",
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def by_libsecp256k1(secret, digest):
    return coincurve.PrivateKey(secret).sign_recoverable(digest, hasher=None)[:64]


def by_python_ecdsa(secret, digest):
    key = ecdsa.SigningKey.from_string(secret, ecdsa.SECP256k1)
    return key.sign_digest_deterministic(digest, hashlib.sha256, sigencode=sigencode_string_canonize)


def high(signature):
    r, s = signature[:32], int.from_bytes(signature[32:], "big")
    return r + (ORDER - s).to_bytes(32, "big")


def token(who, algorithm, leases, sign, change=lambda signature: signature, signer=None):
    header = compact({"alg": algorithm, "typ": "JWT"})
    claims = compact(
        {
            "iss": who["address"],
            "iat": NOT_BEFORE,
            "nbf": NOT_BEFORE,
            "exp": EXPIRES,
            "version": "v1",
            "leases": leases,
        }
    )
    signed = part(header) + b"." + part(claims)
    document = signed if algorithm == "ES256K" else adr36(signed, who["address"])
    digest = hashlib.sha256(document).digest()
    secret = bytes.fromhex((signer or who)["secret"])
    return (signed + b"." + part(change(sign(secret, digest)))).decode()


def main():
    wallets = [fresh_wallet(f"leasemux {n}", 32) for n in range(4)]
    wallets += [fresh_wallet(f"leasemux short {n}", 16) for n in range(2)]
    alice, bob = wallets[0], wallets[1]
    tokens = []

    def add(name, reason, text, key=alice):
        tokens.append({"name": name, "token": text, "key": key["public"], "at": NOT_BEFORE + 1, "reason": reason})

    full = {"access": "full"}
    provider = bob["address"]
    granular = {
        "access": "granular",
        "permissions": [
            {
                "provider": provider,
                "access": "granular",
                "deployments": [{"dseq": 7, "gseq": 1, "oseq": 1, "scope": ["logs"], "services": ["web"]}],
            }
        ],
    }
    for algorithm in ["ES256K", "ES256KADR36"]:
        for name, sign in [("libsecp256k1", by_libsecp256k1), ("python-ecdsa", by_python_ecdsa)]:
            for leases in [full, {"access": "scoped", "scope": ["logs", "status"]}, granular]:
                add(f"{algorithm} by {name}, {leases['access']}", None, token(alice, algorithm, leases, sign))
        plain = token(alice, algorithm, full, by_libsecp256k1)
        add(f"{algorithm}, key of another", "TOKEN_SIGNATURE", plain, bob)
        forged = token(alice, algorithm, full, by_libsecp256k1, signer=bob)
        add(f"{algorithm}, signed by another", "TOKEN_SIGNATURE", forged)
        other = "ES256KADR36" if algorithm == "ES256K" else "ES256K"
        header = part(compact({"alg": other, "typ": "JWT"})).decode()
        add(f"{algorithm} said to be {other}", "TOKEN_SIGNATURE", header + plain[plain.index("."):])
        raised = token(alice, algorithm, full, by_libsecp256k1, high)
        add(f"{algorithm}, high s", "TOKEN_SIGNATURE_HIGH_S", raised)
        # It would be good but for this rule: both signatures of a pair fit.
        digest = hashlib.sha256(b"pair").digest()
        pair = by_libsecp256k1(bytes.fromhex(alice["secret"]), digest)
        public = ecdsa.VerifyingKey.from_string(bytes.fromhex(alice["public"]), ecdsa.SECP256k1)
        assert public.verify_digest(pair, digest) and public.verify_digest(high(pair), digest)
    for vector, kind in [(wallets, "wallets"), (tokens, "tokens")]:
        text = json.dumps(vector, indent=1) + "\n"
        (HERE / f"{kind}.json").write_text(text)


if __name__ == "__main__":
    main()
