//! The one HTTP client for everything that nodes, tools and providers send: it resolves names itself, refuses
//! private, loopback and metadata addresses unless allowed, and checks every redirect again.
//!
//! A name is resolved when a connection is made and the connection goes to an address that was checked, so
//! an answer that changes between check and use changes nothing. Errors never carry a URL's path, query or
//! credentials.

use std::{error::Error as _, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
pub use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use address::{RefusedAddress, Rules};
use redirect::Hop;

mod address;
mod redirect;
#[cfg(test)]
mod tests;

/// A connection that takes longer, name look-up and TLS included, has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many redirects are followed.
const REDIRECTS_MAX: usize = 10;
/// Bytes of a URL.
const URL_BYTES_MAX: usize = 16 * 1024;
/// Bytes of all names and values, of a request and of an answer.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// How many idle connections to one host are kept.
const IDLE_PER_HOST_MAX: usize = 32;

/// Headers that belong to the connection, not to the request: what a caller says of them is left out.
const CONNECTION_HEADERS: &[HeaderName] = &[
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Where requests may go besides public addresses.
#[derive(Clone, Debug, Default)]
pub struct OutboundPolicy {
    /// Networks, addresses, host names and `*.suffix`es, as given to `--allow-outbound`. A host name that is
    /// allowed may resolve to any address.
    pub allowed: Vec<String>,
}

impl OutboundPolicy {
    /// A policy that allows these destinations. The error is a sentence that names the first faulty one.
    pub fn parse(allowed: &[String]) -> Result<Self, String> {
        Rules::parse(allowed)?;
        Ok(Self {
            allowed: allowed.to_vec(),
        })
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct OutboundRequest {
    /// Any but `CONNECT`.
    pub method: Method,
    /// `http` or `https`, at most 16 KiB. A user and password in it become an `Authorization` header.
    pub url: Url,
    /// At most 64 KiB. Those that belong to the connection, such as `Content-Length`, are left out.
    pub headers: HeaderMap,
    /// Sent as it is.
    pub body: Option<Bytes>,
    /// The longest it may take, from the look-up of the name to the last byte of the answer, over all redirects.
    pub timeout: Duration,
    /// Whether redirects are followed; else they are answers like others.
    pub follow_redirects: bool,
    /// The most bytes an answer may have after decompression.
    pub max_response_bytes: usize,
}

impl OutboundRequest {
    /// A request without headers and body: 30 s, redirects followed, at most 16 MiB of answer.
    pub fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: None,
            timeout: Duration::from_secs(30),
            follow_redirects: true,
            max_response_bytes: 16 * 1024 * 1024,
        }
    }
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct OutboundResponse {
    /// Of the last answer when redirects were followed.
    pub status: StatusCode,
    /// At most 64 KiB.
    pub headers: HeaderMap,
    /// Decompressed.
    pub body: Bytes,
    /// Where it came from in the end, without credentials.
    pub url: Url,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundError {
    /// The address is not public and was not allowed. Sending again is no use.
    #[error("{host} is a {reason} address, which is not allowed (see --allow-outbound)")]
    Refused {
        /// The name or address.
        host: String,
        /// What kind of address it is.
        reason: &'static str,
        /// Whether a redirect led there: the first request was sent.
        redirected: bool,
    },
    /// The URL is not one that can be sent to. Sending again is no use.
    #[error("{0}")]
    InvalidUrl(String),
    /// Method or headers cannot be sent. Sending again is no use.
    #[error("{0}")]
    InvalidRequest(String),
    /// There was no complete answer in time. The request may have been sent.
    #[error("no complete answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// No connection came about.
    #[error("cannot connect to {host}: {message}")]
    Connect {
        /// Host and port.
        host: String,
        /// What happened.
        message: String,
        /// Whether a redirect led there: the first request was sent.
        redirected: bool,
    },
    /// The answer is larger than the caller takes. The request was sent.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// Too many redirects, or one that leads nowhere. The request was sent.
    #[error("{0}")]
    Redirect(&'static str),
    /// The connection broke, or what came was not HTTP. The request may have been sent.
    #[error("the exchange failed: {0}")]
    Protocol(String),
}

impl OutboundError {
    /// Whether the other side may have acted on the request.
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            Self::InvalidUrl(_) | Self::InvalidRequest(_) => false,
            Self::Refused { redirected, .. } | Self::Connect { redirected, .. } => *redirected,
            Self::Timeout(_) | Self::TooLarge(_) | Self::Redirect(_) | Self::Protocol(_) => true,
        }
    }

    /// Whether the same request may be answered a little later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Timeout(_) | Self::Connect { .. } | Self::Protocol(_)
        )
    }

    fn refused(refused: RefusedAddress, redirected: bool) -> Self {
        Self::Refused {
            host: refused.host,
            reason: refused.reason,
            redirected,
        }
    }
}

/// Reads an absolute `http` or `https` URL. The error does not repeat it.
pub fn parse_url(text: &str) -> Result<Url, OutboundError> {
    let url = Url::parse(text.trim())
        .map_err(|fault| OutboundError::InvalidUrl(format!("the URL is not valid: {fault}")))?;
    check_form(&url)?;
    Ok(url)
}

fn check_form(url: &Url) -> Result<(), OutboundError> {
    let fault = |text: &str| Err(OutboundError::InvalidUrl(text.to_owned()));
    if !matches!(url.scheme(), "http" | "https") {
        return fault("only http and https URLs can be sent to");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return fault("the URL names no host");
    }
    if url.as_str().len() > URL_BYTES_MAX {
        return fault("the URL is longer than 16 KiB");
    }
    Ok(())
}

/// A guarded HTTP client. Cloning it is cheap; all clones share connections.
#[derive(Clone)]
pub struct OutboundClient {
    http: reqwest::Client,
    rules: Arc<Rules>,
}

impl OutboundClient {
    /// A client for this policy. Takes no proxy and no other setting from the environment. The error is a sentence.
    pub fn new(policy: OutboundPolicy) -> Result<Self, String> {
        let rules = Arc::new(Rules::parse(&policy.allowed)?);
        let http = builder(&rules).build().or_else(|fault| {
            // A machine without root certificates can still speak http to its neighbours.
            tracing::warn!(%fault, "no root certificates: https requests will fail");
            builder(&rules).tls_certs_only([]).build()
        });
        Ok(Self {
            http: http.map_err(|fault| format!("cannot set up the HTTP client: {fault}"))?,
            rules,
        })
    }

    /// The client underneath, for answers that are streamed. It checks the addresses of names, follows no
    /// redirects and has no time limit but the connection's. Addresses in URLs it does not check: call
    /// [`OutboundClient::check_url`] for each URL first.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Whether a request may be sent to this URL, as far as can be told without resolving its name.
    pub fn check_url(&self, url: &Url) -> Result<(), OutboundError> {
        check_form(url)?;
        self.rules
            .check_literal(url)
            .map_err(|refused| OutboundError::refused(refused, false))
    }

    /// Sends a request and reads the whole answer. Never sends twice by itself, but for requests that the other
    /// side says it has not looked at. Dropping the future ends the exchange.
    pub async fn send(&self, request: OutboundRequest) -> Result<OutboundResponse, OutboundError> {
        let timeout = request.timeout;
        match tokio::time::timeout(timeout, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(OutboundError::Timeout(timeout)),
        }
    }

    async fn exchange(&self, request: OutboundRequest) -> Result<OutboundResponse, OutboundError> {
        let (follow, bytes_max) = (request.follow_redirects, request.max_response_bytes);
        let mut hop = self.first_hop(request)?;
        let mut redirects = 0;
        loop {
            let response = self.send_hop(&hop, redirects > 0).await?;
            let location = response.headers().get(header::LOCATION);
            let next = if follow {
                hop.redirected(response.status(), location)
                    .map_err(OutboundError::Redirect)?
            } else {
                None
            };
            match next {
                None => return read(response, bytes_max).await,
                Some(_) if redirects == REDIRECTS_MAX => {
                    return Err(OutboundError::Redirect("there are more than 10 redirects"));
                }
                Some(next) => hop = next,
            }
            redirects += 1;
        }
    }

    fn first_hop(&self, request: OutboundRequest) -> Result<Hop, OutboundError> {
        let invalid = |text: &str| OutboundError::InvalidRequest(text.to_owned());
        check_form(&request.url)?;
        if request.method == Method::CONNECT {
            return Err(invalid("CONNECT cannot be sent"));
        }
        if header_bytes(&request.headers) > HEADER_BYTES_MAX {
            return Err(invalid("the headers are larger than 64 KiB"));
        }
        let mut headers = request.headers;
        for name in CONNECTION_HEADERS {
            headers.remove(name);
        }
        // The builder moves credentials from the URL to the headers, where redirects treat them as such.
        let built = self
            .http
            .request(request.method, request.url)
            .headers(headers)
            .build()
            .map_err(|fault| invalid(&innermost(&fault.without_url())))?;
        let mut url = built.url().clone();
        url.set_fragment(None);
        Ok(Hop {
            method: built.method().clone(),
            url,
            headers: built.headers().clone(),
            body: request.body,
        })
    }

    async fn send_hop(
        &self,
        hop: &Hop,
        redirected: bool,
    ) -> Result<reqwest::Response, OutboundError> {
        check_form(&hop.url).map_err(|fault| match redirected {
            true => OutboundError::Redirect("the redirect leads to no URL that can be sent to"),
            false => fault,
        })?;
        self.rules
            .check_literal(&hop.url)
            .map_err(|refused| OutboundError::refused(refused, redirected))?;
        let mut request = reqwest::Request::new(hop.method.clone(), hop.url.clone());
        *request.headers_mut() = hop.headers.clone();
        *request.body_mut() = hop.body.clone().map(reqwest::Body::from);
        self.http
            .execute(request)
            .await
            .map_err(|fault| classify(fault, redirected))
    }
}

fn builder(rules: &Arc<Rules>) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .dns_resolver(GuardedResolver(rules.clone()))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
        .pool_idle_timeout(CONNECT_TIMEOUT * 3)
        .http2_max_header_list_size(HEADER_BYTES_MAX as u32)
        .user_agent(concat!("callboard/", env!("CARGO_PKG_VERSION")))
}

/// Resolves names for connections, and gives out only addresses that may be connected to.
struct GuardedResolver(Arc<Rules>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = self.0.clone();
        Box::pin(async move {
            // The port is replaced by the URL's.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let kept: Vec<SocketAddr> = rules.retain(name.as_str(), found)?;
            Ok(Box::new(kept.into_iter()) as Addrs)
        })
    }
}

async fn read(
    mut response: reqwest::Response,
    bytes_max: usize,
) -> Result<OutboundResponse, OutboundError> {
    if header_bytes(response.headers()) > HEADER_BYTES_MAX {
        return Err(OutboundError::Protocol(
            "the answer's headers are larger than 64 KiB".to_owned(),
        ));
    }
    // Absent when the body is compressed: then only the count below tells.
    if response
        .content_length()
        .is_some_and(|length| length > bytes_max as u64)
    {
        return Err(OutboundError::TooLarge(bytes_max));
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|fault| classify(fault, true))?
    {
        if body.len() + chunk.len() > bytes_max {
            return Err(OutboundError::TooLarge(bytes_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(OutboundResponse {
        status: response.status(),
        url: response.url().clone(),
        headers: std::mem::take(response.headers_mut()),
        body: body.freeze(),
    })
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

fn classify(fault: reqwest::Error, redirected: bool) -> OutboundError {
    let host = fault.url().and_then(place).unwrap_or_default();
    let fault = fault.without_url();
    if let Some(refused) = find_refused(&fault) {
        return OutboundError::refused(refused.clone(), redirected);
    }
    if fault.is_connect() {
        let message = if fault.is_timeout() {
            format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())
        } else {
            innermost(&fault)
        };
        return OutboundError::Connect {
            host,
            message,
            redirected,
        };
    }
    OutboundError::Protocol(innermost(&fault))
}

/// `host:port`: what may be told of a URL, whose other parts may hold secrets.
fn place(url: &Url) -> Option<String> {
    Some(format!(
        "{}:{}",
        url.host_str()?,
        url.port_or_known_default()?
    ))
}

fn find_refused(fault: &reqwest::Error) -> Option<&RefusedAddress> {
    let mut source = fault.source();
    while let Some(inner) = source {
        if let Some(refused) = inner.downcast_ref() {
            return Some(refused);
        }
        source = inner.source();
    }
    None
}

/// The cause at the bottom, which says what happened; the layers above only say where.
fn innermost(fault: &reqwest::Error) -> String {
    let mut text = fault.to_string();
    let mut source = fault.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}
