//! JSON without loss: duplicate members are kept, and no number is rounded.
//!
//! The input is at most as long as a token, and nested at most as deep as `serde_json` allows (128).

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};

use super::TokenError;
use crate::access::refusal::Refusal;

#[derive(Debug, PartialEq)]
pub(super) enum Json {
    /// A value that no claim has: `null`, `true`, `false`, or a number that is negative, has a fraction or
    /// exponent, or exceeds 64 bits.
    Other,
    Number(u64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// A place in the claims: `leases.permissions[0].scope`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

/// The members of an object: all known, none duplicate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Members<'a> {
    all: &'a [(String, Json)],
    path: &'a Path<'a>,
}

struct JsonVisitor;

// === impl Json ===

impl Json {
    /// Reads exactly one value.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    pub(super) fn text(&self, path: &Path<'_>) -> Result<&str, TokenError> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(path.error(Refusal::TokenMemberType)),
        }
    }

    /// Returns the items of a list, which fails with `empty` if it has none.
    pub(super) fn items(&self, path: &Path<'_>, empty: Refusal) -> Result<&[Self], TokenError> {
        match self {
            Self::List(items) if items.is_empty() => Err(path.error(empty)),
            Self::List(items) => Ok(items),
            _ => Err(path.error(Refusal::TokenMemberType)),
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

    pub(super) fn error(&self, refusal: Refusal) -> TokenError {
        TokenError { refusal, at: self.to_string() }
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
    /// Reads the object `json` at `path`, which may have the members `known`.
    pub(super) fn of(json: &'a Json, path: &'a Path<'a>, known: &[&str]) -> Result<Self, TokenError> {
        let Json::Object(all) = json else {
            return Err(path.error(Refusal::TokenMemberType));
        };
        for (at, (name, _)) in all.iter().enumerate() {
            // Comes first, because the cost of the other check is quadratic in the members that pass this
            // one.
            if !known.contains(&name.as_str()) {
                return Err(path.member(name).error(Refusal::TokenMemberUnknown));
            }
            if all[..at].iter().any(|(other, _)| other == name) {
                return Err(path.member(name).error(Refusal::TokenMemberTwice));
            }
        }
        Ok(Self { all, path })
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Json> {
        self.all.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    pub(super) fn required(&self, name: &str) -> Result<&'a Json, TokenError> {
        self.get(name).ok_or_else(|| self.path.member(name).error(Refusal::TokenMemberMissing))
    }

    /// Checks that these members are absent.
    pub(super) fn without(&self, names: &[&str]) -> Result<(), TokenError> {
        match names.iter().find(|name| self.get(name).is_some()) {
            Some(name) => Err(self.path.member(name).error(Refusal::TokenMemberMisplaced)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_are_numbers() {
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
    fn input_other_than_one_value_is_refused() {
        let deep = "[".repeat(10_000);
        for text in ["", "{", "{}{}", "[1,]", "{\"a\":1,}", "01", "+1", "NaN", "'a'", "\"\\ud800\"", &deep] {
            assert_eq!(Json::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Json::parse(b"\"\xff\""), None);
    }

    #[test]
    fn unknown_and_duplicate_members_are_refused() {
        let known = ["a", "b"];
        let error = |text: &str| {
            let json = Json::parse(text.as_bytes()).unwrap();
            let root = Path::Root;
            let path = root.member("x");
            Members::of(&json, &path, &known).map(|_| ()).unwrap_err()
        };
        let expect = |refusal, at: &str| TokenError { refusal, at: at.to_owned() };
        assert_eq!(error("[]"), expect(Refusal::TokenMemberType, "x"));
        assert_eq!(error("{\"a\":1,\"c\":1}"), expect(Refusal::TokenMemberUnknown, "x.c"));
        assert_eq!(error("{\"a\":1,\"\\u0061\":1}"), expect(Refusal::TokenMemberTwice, "x.a"));
    }
}
