//! Where a request came from, for those that are answered without a key because they were made on this machine.
//!
//! A browser on this machine makes requests for any web page. Such a page can name this server as `127.0.0.1`, whose
//! answers it cannot read but whose work it can start; or by a name of its own that it lets lead here, and then it reads
//! the answers, too. Both say so: the first in `Origin` or `Sec-Fetch-Site`, the second in `Host`. Where keys are asked
//! for none of this matters, since no browser adds a key by itself.

use std::net::IpAddr;

use poem::{
    Request,
    http::{StatusCode, header},
};

use super::problem::{ApiError, ApiResult};

/// # Errors
/// 403 when the request names this server as only another machine would, or was made by a page from elsewhere.
pub fn check(request: &Request) -> ApiResult<()> {
    let refuse = |code, detail| Err(ApiError::new(StatusCode::FORBIDDEN, code, detail));
    let headers = request.headers();
    let hosts = headers.get_all(header::HOST).iter();
    let all_ours = hosts
        .map(|host| host.to_str().unwrap_or_default())
        .chain(request.uri().authority().map(|name| name.as_str()))
        .all(is_this_machine);
    if !all_ours {
        return refuse(
            "host_not_allowed",
            "Without a key only requests to `localhost` or a loopback address are answered.",
        );
    }
    let origins = headers.get_all(header::ORIGIN).iter();
    let elsewhere = origins
        .map(|origin| origin.to_str().unwrap_or_default())
        .any(|origin| match origin.split_once("://") {
            Some((_, host)) => !is_this_machine(host),
            None => true,
        });
    let cross_site = headers
        .get("sec-fetch-site")
        .is_some_and(|site| site == "cross-site");
    if elsewhere || cross_site {
        return refuse(
            "origin_not_allowed",
            "Without a key requests of web pages from elsewhere are not answered.",
        );
    }
    Ok(())
}

/// Whether `HOST[:PORT]` can only mean the machine it is said on.
fn is_this_machine(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(headers: &[(&str, &str)]) -> bool {
        let request = headers
            .iter()
            .fold(Request::builder(), |request, (name, value)| {
                request.header(*name, *value)
            });
        check(&request.uri_str("/v1/workflows").finish()).is_ok()
    }

    #[test]
    fn names_that_lead_here_from_elsewhere_are_refused() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.:1",
            "app.localhost:80",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(answered(&[("host", host)]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:8080",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "10.0.0.1",
            "0.0.0.0:8080",
            "[::2]:1",
            "evillocalhost",
        ] {
            assert!(!answered(&[("host", host)]), "{host:?}");
        }
        assert!(!answered(&[
            ("host", "localhost"),
            ("host", "evil.example")
        ]));
        assert!(
            answered(&[]),
            "a program need not say how it calls this server"
        );
        let absolute = Request::builder()
            .uri_str("http://evil.example/v1")
            .finish();
        assert!(check(&absolute).is_err());
    }

    #[test]
    fn pages_from_elsewhere_are_refused() {
        let from = |name, value| answered(&[("host", "127.0.0.1:8080"), (name, value)]);
        assert!(from("origin", "http://127.0.0.1:8080"));
        assert!(from("origin", "http://localhost:5173"));
        assert!(from("sec-fetch-site", "same-origin"));
        assert!(from("sec-fetch-site", "none"));
        assert!(!from("origin", "https://evil.example"));
        assert!(!from("origin", "null"));
        assert!(!from("origin", ""));
        assert!(!from("sec-fetch-site", "cross-site"));
    }
}
