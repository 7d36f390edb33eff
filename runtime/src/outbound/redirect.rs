//! What follows a redirect. Pure: the rules of the Fetch standard, stricter about what crosses an origin.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;

/// Headers that may follow a redirect to another origin. Anything else may be a credential.
const CROSS_ORIGIN: &[header::HeaderName] = &[
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_TYPE,
    header::USER_AGENT,
];

/// Headers that describe a body.
const CONTENT: &[header::HeaderName] = &[
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_TYPE,
];

/// One request of a chain of redirects.
#[derive(Clone, Debug)]
pub(super) struct Hop {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<Bytes>,
}

impl Hop {
    /// The request that an answer asks for instead; `None` when the answer is no redirect. The error says
    /// what is wrong with the redirect.
    pub(super) fn redirected(
        &self,
        status: StatusCode,
        location: Option<&HeaderValue>,
    ) -> Result<Option<Self>, &'static str> {
        let location = match (status.as_u16(), location) {
            (301 | 302 | 303 | 307 | 308, Some(location)) => location,
            _ => return Ok(None),
        };
        let url = target(&self.url, location)?;
        let mut next = self.clone();
        if becomes_get(status, &self.method) {
            next.method = Method::GET;
            next.body = None;
            for name in CONTENT {
                next.headers.remove(name);
            }
        }
        if url.origin() != self.url.origin() {
            next.headers = CROSS_ORIGIN
                .iter()
                .filter_map(|name| Some((name.clone(), next.headers.get(name)?.clone())))
                .collect();
        }
        next.url = url;
        Ok(Some(next))
    }
}

fn target(base: &Url, location: &HeaderValue) -> Result<Url, &'static str> {
    const FAULT: &str = "the redirect names no valid URL";
    let text = str::from_utf8(location.as_bytes()).map_err(|_| FAULT)?;
    let mut url = base.join(text).map_err(|_| FAULT)?;
    // Credentials that a server puts into its redirect are not the sender's to send.
    if !url.username().is_empty() || url.password().is_some() {
        url.set_username("").map_err(|()| FAULT)?;
        url.set_password(None).map_err(|()| FAULT)?;
    }
    url.set_fragment(None);
    Ok(url)
}

fn becomes_get(status: StatusCode, method: &Method) -> bool {
    match status.as_u16() {
        303 => *method != Method::GET && *method != Method::HEAD,
        301 | 302 => *method == Method::POST,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(method: Method) -> Hop {
        let headers = [
            ("accept", "application/json"),
            ("authorization", "Bearer secret"),
            ("content-type", "text/plain"),
            ("cookie", "session=secret"),
            ("x-api-key", "secret"),
        ];
        Hop {
            method,
            url: Url::parse("https://a.example/one?x=1").unwrap(),
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
                .collect::<HeaderMap>(),
            body: Some(Bytes::from_static(b"body")),
        }
    }

    fn redirected(from: &Hop, status: u16, location: &'static str) -> Hop {
        from.redirected(
            StatusCode::from_u16(status).unwrap(),
            Some(&HeaderValue::from_static(location)),
        )
        .unwrap()
        .unwrap()
    }

    #[test]
    fn methods_and_bodies_follow_the_fetch_standard() {
        for (status, method, then) in [
            (301, Method::POST, Method::GET),
            (302, Method::POST, Method::GET),
            (303, Method::POST, Method::GET),
            (303, Method::PUT, Method::GET),
            (303, Method::HEAD, Method::HEAD),
            (301, Method::PUT, Method::PUT),
            (302, Method::DELETE, Method::DELETE),
            (307, Method::POST, Method::POST),
            (308, Method::POST, Method::POST),
        ] {
            let next = redirected(&hop(method.clone()), status, "/two");
            assert_eq!(next.method, then, "{status} {method}");
            let kept = then == method;
            assert_eq!(next.body.is_some(), kept, "{status} {method}");
            assert_eq!(next.headers.contains_key("content-type"), kept);
            assert_eq!(next.url.as_str(), "https://a.example/two");
            assert!(next.headers.contains_key("authorization"));
        }
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        for location in [
            "https://b.example/",
            "http://a.example/one",
            "https://a.example:8443/one",
            "//b.example/one",
        ] {
            let next = redirected(&hop(Method::GET), 307, location);
            let mut left: Vec<_> = next.headers.keys().map(|name| name.as_str()).collect();
            left.sort_unstable();
            assert_eq!(left, ["accept", "content-type"], "{location}");
        }
    }

    #[test]
    fn credentials_in_a_redirect_are_dropped() {
        let next = redirected(&hop(Method::GET), 302, "https://u:p@b.example/x#part");
        assert_eq!(next.url.as_str(), "https://b.example/x");
    }

    #[test]
    fn what_is_no_redirect_is_an_answer() {
        let hop = hop(Method::GET);
        let location = HeaderValue::from_static("/two");
        assert!(
            hop.redirected(StatusCode::OK, Some(&location))
                .unwrap()
                .is_none()
        );
        assert!(
            hop.redirected(StatusCode::NOT_MODIFIED, Some(&location))
                .unwrap()
                .is_none()
        );
        assert!(hop.redirected(StatusCode::FOUND, None).unwrap().is_none());
        let broken = HeaderValue::from_static("http://[::1");
        assert!(hop.redirected(StatusCode::FOUND, Some(&broken)).is_err());
    }
}
