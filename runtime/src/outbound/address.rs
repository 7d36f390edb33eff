//! Which addresses requests may go to. Pure: no look-ups, no sockets.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use reqwest::Url;

/// How many entries an allow-list may have.
const ALLOWED_MAX: usize = 1_000;

/// IPv4 ranges that are not public hosts (IANA special-purpose registry), and the one public address that a
/// cloud serves machine credentials on.
const IPV4_REFUSED: &[([u8; 4], u8, &str)] = &[
    ([0, 0, 0, 0], 8, "unspecified"),
    ([10, 0, 0, 0], 8, "private"),
    ([100, 64, 0, 0], 10, "carrier-grade NAT"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([168, 63, 129, 16], 32, "metadata"),
    ([169, 254, 0, 0], 16, "link-local or metadata"),
    ([172, 16, 0, 0], 12, "private"),
    ([192, 0, 0, 0], 24, "reserved"),
    ([192, 0, 2, 0], 24, "reserved"),
    ([192, 88, 99, 0], 24, "reserved"),
    ([192, 168, 0, 0], 16, "private"),
    ([198, 18, 0, 0], 15, "reserved"),
    ([198, 51, 100, 0], 24, "reserved"),
    ([203, 0, 113, 0], 24, "reserved"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "reserved"),
];

/// What an operator allows besides public addresses.
#[derive(Debug, Default)]
pub(super) struct Rules {
    networks: Vec<IpNet>,
    names: HashSet<String>,
    /// With their leading dot.
    suffixes: Vec<String>,
}

/// An address or name that requests may not go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusedAddress {
    /// As the URL names it.
    pub host: String,
    /// What kind of address it is.
    pub reason: &'static str,
}

impl fmt::Display for RefusedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is a {} address", self.host, self.reason)
    }
}

impl std::error::Error for RefusedAddress {}

impl Rules {
    /// Reads networks (`10.0.0.0/8`, `fd00::/8`), addresses, host names and `*.suffix`es.
    pub(super) fn parse(entries: &[String]) -> Result<Self, String> {
        if entries.len() > ALLOWED_MAX {
            return Err(format!("at most {ALLOWED_MAX} destinations may be allowed"));
        }
        let mut rules = Self::default();
        for entry in entries {
            rules.add(entry.trim())?;
        }
        Ok(rules)
    }

    fn add(&mut self, entry: &str) -> Result<(), String> {
        let literal = entry
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(entry);
        if let Ok(network) = literal.parse::<IpNet>() {
            self.networks.push(network);
        } else if let Ok(address) = literal.parse::<IpAddr>() {
            self.networks.push(address.into());
        } else if let Some(suffix) = entry.strip_prefix("*.") {
            self.suffixes
                .push(format!(".{}", host_name(suffix, entry)?));
        } else {
            self.names.insert(host_name(entry, entry)?);
        }
        Ok(())
    }

    /// Whether every address of this name is allowed.
    fn allows_name(&self, name: &str) -> bool {
        self.names.contains(name)
            || self
                .suffixes
                .iter()
                .any(|suffix| name.len() > suffix.len() && name.ends_with(suffix.as_str()))
    }

    /// Whether a URL's host may be contacted, as far as can be told without resolving it.
    pub(super) fn check_literal(&self, url: &Url) -> Result<(), RefusedAddress> {
        let Some(address) = literal(url) else {
            return Ok(());
        };
        self.check_address(address)
            .map_err(|reason| RefusedAddress {
                host: address.to_string(),
                reason,
            })
    }

    /// What may be connected to of the addresses that a name resolved to.
    pub(super) fn retain(
        &self,
        name: &str,
        addresses: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, RefusedAddress> {
        let plain = name.trim_end_matches('.').to_ascii_lowercase();
        if self.allows_name(&plain) {
            return Ok(addresses.collect());
        }
        let mut refused = None;
        let kept: Vec<_> = addresses
            .filter(|address| match self.check_address(address.ip()) {
                Ok(()) => true,
                Err(reason) => {
                    refused = Some(reason);
                    false
                }
            })
            .collect();
        match refused {
            Some(reason) if kept.is_empty() => Err(RefusedAddress {
                host: plain,
                reason,
            }),
            _ => Ok(kept),
        }
    }

    /// Whether an address is public or allowed; else what kind it is.
    pub(super) fn check_address(&self, address: IpAddr) -> Result<(), &'static str> {
        let address = address.to_canonical();
        if self.networks.iter().any(|net| net.contains(&address)) {
            return Ok(());
        }
        match address {
            IpAddr::V4(address) => refusal_v4(address).map_or(Ok(()), Err),
            IpAddr::V6(address) => self.check_v6(address),
        }
    }

    fn check_v6(&self, address: Ipv6Addr) -> Result<(), &'static str> {
        let segments = address.segments();
        let [.., high, low] = segments;
        match segments {
            // Translated by a gateway to the IPv4 address in the last 32 bits (RFC 6052).
            [0x64, 0xff9b, 0, 0, 0, 0, _, _] => return self.check_address(ipv4(high, low).into()),
            // 6to4: routed to the IPv4 address after the prefix.
            [0x2002, high, low, ..] => self.check_address(ipv4(high, low).into())?,
            // ISATAP: any prefix, then an interface identifier that is an IPv4 address.
            [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => self.check_address(ipv4(high, low).into())?,
            _ => {}
        }
        refusal_v6(segments).map_or(Ok(()), Err)
    }
}

/// The address a URL names outright. The URL parser has already read decimal, octal and hexadecimal spellings.
fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
        .parse()
        .ok()
}

fn ipv4(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))
}

fn refusal_v4(address: Ipv4Addr) -> Option<&'static str> {
    IPV4_REFUSED
        .iter()
        .find(|(network, prefix, _)| {
            let mask = u32::MAX << (32 - u32::from(*prefix));
            u32::from(address) & mask == u32::from(Ipv4Addr::from(*network))
        })
        .map(|&(_, _, reason)| reason)
}

/// Only 2000::/3 holds public hosts; within it a few ranges do not.
fn refusal_v6(segments: [u16; 8]) -> Option<&'static str> {
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // Deprecated IPv4-compatible addresses; mapped ones were read as IPv4 before.
        [0, 0, 0, 0, 0, 0, ..] => Some("reserved"),
        [0xfc00..=0xfdff, ..] => Some("private"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("private"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        // Protocol assignments, Teredo's 2001::/32 among them.
        [0x2001, 0x0000..=0x01ff, ..] => Some("reserved"),
        // Documentation.
        [0x2001, 0x0db8, ..] | [0x3fff, 0x0000..=0x0fff, ..] => Some("reserved"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("reserved"),
    }
}

/// A host name in the form that resolvers are asked for: lower case, punycode.
fn host_name(name: &str, entry: &str) -> Result<String, String> {
    let fault = || {
        format!(
            "`{entry}` is no network, address, host name or *.suffix (no scheme, port or path belongs to it)"
        )
    };
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || "/\\:@?#[]%*".contains(c)) {
        return Err(fault());
    }
    let url = Url::parse(&format!("http://{name}/")).map_err(|_| fault())?;
    let host = url.domain().ok_or_else(fault)?;
    Ok(host.trim_end_matches('.').to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(entries: &[&str]) -> Rules {
        Rules::parse(&entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn allows(rules: &Rules, url: &str) -> bool {
        let url = Url::parse(url).unwrap();
        assert!(literal(&url).is_some(), "{url} names no address");
        rules.check_literal(&url).is_ok()
    }

    #[test]
    fn every_spelling_of_an_inner_address_is_refused() {
        let none = Rules::default();
        for host in [
            "127.0.0.1",
            "127.1",
            "127.255.255.254",
            "2130706433",
            "017700000001",
            "0x7f000001",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "１２７.0.0.1",
            "127。0。0。1",
            "%31%32%37.0.0.1",
            "0",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "169.254.170.2",
            "0xa9fea9fe",
            "2852039166",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::127.0.0.1]",
            "[::8.8.8.8]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::ffff:169.254.169.254]",
            "[::ffff:0:127.0.0.1]",
            "[64:ff9b::10.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::1]",
            "[100::1]",
            "[2001::1]",
            "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
            "[2001:10::1]",
            "[2001:20::1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[2002:a9fe:a9fe::1]",
            "[2002:c0a8:101::1]",
            "[3fff::1]",
            "[2606:4700::5efe:10.0.0.1]",
            "[2606:4700::200:5efe:192.168.1.1]",
            "[4000::1]",
            "[5f00::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[febf::1]",
            "[fe80::5efe:10.0.0.1]",
            "[fec0::1]",
            "[ff02::1]",
        ] {
            assert!(!allows(&none, &format!("http://{host}/")), "{host}");
        }
    }

    #[test]
    fn public_addresses_are_allowed() {
        let none = Rules::default();
        for host in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "[::ffff:8.8.8.8]",
            "[64:ff9b::8.8.8.8]",
            "[2001:200::1]",
            "[2001:4860:4860::8888]",
            "[2002:808:808::1]",
            "[2606:4700::5efe:8.8.8.8]",
            "[2a00:1450::1]",
        ] {
            assert!(allows(&none, &format!("http://{host}/")), "{host}");
        }
    }

    #[test]
    fn a_network_is_allowed_in_every_form_it_can_be_written_in() {
        let rules = rules(&["127.0.0.0/8", " 10.1.2.3 ", "fd00::/8", "[::1]"]);
        for host in [
            "127.9.9.9",
            "0x7f000001",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::127.0.0.1]",
            "10.1.2.3",
            "[fd12::1]",
            "[::1]",
        ] {
            assert!(allows(&rules, &format!("http://{host}/")), "{host}");
        }
        for host in ["10.1.2.4", "[fc00::1]", "169.254.169.254"] {
            assert!(!allows(&rules, &format!("http://{host}/")), "{host}");
        }
    }

    #[test]
    fn of_a_name_only_allowed_addresses_are_kept() {
        let rules = rules(&["model.internal", "*.lan.example", "10.0.0.0/8"]);
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let both = addresses(&["192.168.0.1:0", "8.8.8.8:0", "10.0.0.1:0"]);
        let inner = addresses(&["192.168.0.1:0"]);
        let kept = |name: &str, from: &[SocketAddr]| rules.retain(name, from.iter().copied());
        assert_eq!(
            kept("example.org", &both),
            Ok(addresses(&["8.8.8.8:0", "10.0.0.1:0"]))
        );
        assert_eq!(
            kept("Example.org.", &inner),
            Err(RefusedAddress {
                host: "example.org".to_owned(),
                reason: "private"
            })
        );
        for name in ["model.internal", "MODEL.internal.", "a.b.lan.example"] {
            assert_eq!(kept(name, &inner), Ok(inner.clone()), "{name}");
        }
        for name in ["lan.example", "xlan.example", "x.model.internal"] {
            assert!(kept(name, &inner).is_err(), "{name}");
        }
        assert_eq!(kept("nowhere.example", &[]), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        for entry in [
            "",
            " ",
            "*",
            "*.",
            "a.*",
            "http://example.org",
            "example.org:80",
            "example.org/x",
            "10.0.0.0/33",
            "2130706433",
            "user@example.org",
            "a b",
        ] {
            assert!(Rules::parse(&[entry.to_owned()]).is_err(), "{entry:?}");
        }
        assert_eq!(
            rules(&["Bücher.Example."])
                .names
                .into_iter()
                .next()
                .unwrap(),
            "xn--bcher-kva.example"
        );
    }
}
