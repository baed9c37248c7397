//! JSON as it stands there: a member that is given twice is still there twice, and no number is rounded.
//!
//! What is read is at most as long as a token, and nested at most as deep as `serde_json` allows (128).

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};

use super::Fault;
use crate::access::refusal::Refusal;

/// A value.
#[derive(Debug, PartialEq)]
pub(super) enum Json {
    /// `null`, `true`, `false`, a negative number, one with a fraction or exponent, or one beyond 64 bits: what no claim is.
    Other,
    Number(u64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Where in the claims something is: `leases.permissions[0].scope`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

/// The members of an object of which all are known and none is there twice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Members<'a> {
    all: &'a [(String, Json)],
    path: &'a Path<'a>,
}

struct JsonVisitor;

// === impl Json ===

impl Json {
    /// Reads one value and nothing behind it; `None` if that is not what stands there.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    pub(super) fn text(&self, path: &Path<'_>) -> Result<&str, Fault> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(path.fault(Refusal::TokenMemberType)),
        }
    }

    pub(super) fn list(&self, path: &Path<'_>) -> Result<&[Self], Fault> {
        match self {
            Self::List(items) => Ok(items),
            _ => Err(path.fault(Refusal::TokenMemberType)),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = Vec::new();
        while let Some(member) = members.next_entry()? {
            object.push(member);
        }
        Ok(Json::Object(object))
    }
}

// === impl Path ===

impl<'a> Path<'a> {
    pub(super) fn member(&'a self, name: &'a str) -> Self {
        Self::Member(self, name)
    }

    pub(super) fn item(&'a self, index: usize) -> Self {
        Self::Item(self, index)
    }

    /// What is wrong with what is here.
    pub(super) fn fault(&self, refusal: Refusal) -> Fault {
        Fault { refusal, at: self.to_string() }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(Self::Root, name) => f.write_str(name),
            Self::Member(path, name) => write!(f, "{path}.{name}"),
            Self::Item(path, index) => write!(f, "{path}[{index}]"),
        }
    }
}

// === impl Members ===

impl<'a> Members<'a> {
    /// The members of the object `json` at `path`.
    pub(super) fn of(json: &'a Json, path: &'a Path<'a>, known: &[&str]) -> Result<Self, Fault> {
        let Json::Object(all) = json else {
            return Err(path.fault(Refusal::TokenMemberType));
        };
        for (at, (name, _)) in all.iter().enumerate() {
            // Before the other check, whose cost grows with the square of what passes this one.
            if !known.contains(&name.as_str()) {
                return Err(path.member(name).fault(Refusal::TokenMemberUnknown));
            }
            if all[..at].iter().any(|(other, _)| other == name) {
                return Err(path.member(name).fault(Refusal::TokenMemberTwice));
            }
        }
        Ok(Self { all, path })
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Json> {
        self.all.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    pub(super) fn required(&self, name: &str) -> Result<&'a Json, Fault> {
        self.get(name).ok_or_else(|| self.path.member(name).fault(Refusal::TokenMemberMissing))
    }

    /// Checks that none of these is there.
    pub(super) fn without(&self, names: &[&str]) -> Result<(), Fault> {
        match names.iter().find(|name| self.get(name).is_some()) {
            Some(name) => Err(self.path.member(name).fault(Refusal::TokenMemberMisplaced)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_or_nothing() {
        for (text, value) in [
            ("0", Json::Number(0)),
            ("18446744073709551615", Json::Number(u64::MAX)),
            ("18446744073709551616", Json::Other),
            ("-0", Json::Other),
            ("-1", Json::Other),
            ("1.0", Json::Other),
            ("1e3", Json::Other),
            ("null", Json::Other),
        ] {
            assert_eq!(Json::parse(text.as_bytes()), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_not_one_value_is_nothing() {
        let deep = "[".repeat(10_000);
        for text in ["", "{", "{}{}", "[1,]", "{\"a\":1,}", "01", "+1", "NaN", "'a'", "\"\\ud800\"", &deep] {
            assert_eq!(Json::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Json::parse(b"\"\xff\""), None);
    }

    #[test]
    fn members_are_known_and_there_once() {
        let known = ["a", "b"];
        let fault = |text: &str| {
            let json = Json::parse(text.as_bytes()).unwrap();
            let root = Path::Root;
            let path = root.member("x");
            Members::of(&json, &path, &known).map(|_| ()).unwrap_err()
        };
        let expect = |refusal, at: &str| Fault { refusal, at: at.to_owned() };
        assert_eq!(fault("[]"), expect(Refusal::TokenMemberType, "x"));
        assert_eq!(fault("{\"a\":1,\"c\":1}"), expect(Refusal::TokenMemberUnknown, "x.c"));
        assert_eq!(fault("{\"a\":1,\"\\u0061\":1}"), expect(Refusal::TokenMemberTwice, "x.a"));
    }
}
