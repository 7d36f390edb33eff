//! Who asks, and whether they may.
//!
//! Keys are looked up by the SHA-256 of their secret and remembered for [`FRESH`], so that requests in a row cost
//! one query. A key revoked on this host is forgotten at once; one revoked on another works here for at most
//! that long. Expiry is checked on every request.

use std::{
    collections::HashMap,
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use callboard_runtime::{
    id::KeyId,
    store::{StoreError, api_keys},
};
use chrono::{DateTime, Utc};
use poem::{
    Request, RequestBody,
    http::{HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio::time::Instant;

use super::{
    State, origin,
    problem::{ApiError, ApiResult},
};

/// How long a key is trusted without asking the database again.
const FRESH: Duration = Duration::from_secs(5);
/// How long an unknown key is refused without asking: short, since it may be made meanwhile on another host.
const FRESH_UNKNOWN: Duration = Duration::from_secs(1);
/// How many keys are remembered. Beyond it all are forgotten, which costs a query each.
const REMEMBERED_MAX: usize = 10_000;
/// The longest secret that is looked at, in bytes.
const SECRET_MAX: usize = 512;

/// SHA-256 of a key's secret: all that is stored of it.
pub type KeyHash = [u8; 32];

/// The hash under which a secret is stored.
pub fn hash(secret: &str) -> KeyHash {
    Sha256::digest(secret).into()
}

/// Whoever sent a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Caller {
    /// The key's id; `None` when the server runs without authentication.
    pub key: Option<KeyId>,
    /// The key's name.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
}

impl Caller {
    /// Whether the key has `scope`. `*` and `admin` have every scope.
    pub fn may(&self, scope: &str) -> bool {
        self.scopes
            .iter()
            .any(|held| held == scope || held == "*" || held == "admin")
    }

    /// # Errors
    /// 403 naming the scope when the key lacks it.
    pub fn require(&self, scope: &str) -> ApiResult<()> {
        if self.may(scope) {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "missing_scope",
            format!("This needs a key with scope `{scope}`."),
        )
        .with("scope", scope))
    }
}

/// The keys of this system, as this process remembers them.
pub struct Keys {
    db: PgPool,
    everyone: Option<Arc<Caller>>,
    remembered: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    /// Raised by every change made here, so that an answer read before it is not kept after it.
    generation: u64,
    by_hash: HashMap<KeyHash, Entry>,
}

struct Entry {
    caller: Option<Arc<Caller>>,
    expires_at: Option<DateTime<Utc>>,
    checked_at: Instant,
}

impl Entry {
    fn is_fresh(&self, now: Instant) -> bool {
        let fresh = if self.caller.is_some() {
            FRESH
        } else {
            FRESH_UNKNOWN
        };
        now.duration_since(self.checked_at) < fresh
    }

    /// The caller, unless the key has expired by now.
    fn caller(&self) -> Option<Arc<Caller>> {
        let valid = self.expires_at.is_none_or(|end| Utc::now() < end);
        self.caller.clone().filter(|_| valid)
    }
}

impl Keys {
    /// Looks keys up in `db`. With `no_auth` nobody is asked for one and everybody may do everything.
    pub fn new(db: PgPool, no_auth: bool) -> Self {
        let everyone = no_auth.then(|| {
            Arc::new(Caller {
                key: None,
                name: "anonymous".to_owned(),
                scopes: vec!["*".to_owned()],
                expires_at: None,
            })
        });
        Self {
            db,
            everyone,
            remembered: Mutex::default(),
        }
    }

    /// The key that a request carries. `?key=` counts when `in_query`, which is for event streams only:
    /// browsers cannot send headers with them.
    ///
    /// # Errors
    /// 401 without a valid key, 503 when the database cannot be asked; where no key is asked for, 403 for what a web
    /// page of somebody else sent.
    pub async fn caller(&self, request: &Request, in_query: bool) -> ApiResult<Arc<Caller>> {
        if let Some(everyone) = &self.everyone {
            origin::check(request)?;
            return Ok(everyone.clone());
        }
        let secret = match bearer(request) {
            Some(secret) => Some(secret.to_owned()),
            None if in_query => query_key(request),
            None => None,
        };
        let Some(secret) = secret.filter(|secret| secret.len() <= SECRET_MAX) else {
            return Err(unauthorized(
                "This needs an API key: `Authorization: Bearer KEY`.",
                "Bearer realm=\"callboard\"",
            ));
        };
        self.find(hash(&secret)).await?.ok_or_else(|| {
            unauthorized(
                "The API key is unknown, revoked or expired.",
                "Bearer realm=\"callboard\", error=\"invalid_token\"",
            )
        })
    }

    /// Forgets what is remembered of keys: one was made or revoked.
    pub fn forget(&self) {
        let mut remembered = self.lock();
        remembered.generation += 1;
        remembered.by_hash.clear();
    }

    async fn find(&self, hash: KeyHash) -> Result<Option<Arc<Caller>>, StoreError> {
        let generation = {
            let mut remembered = self.lock();
            let generation = remembered.generation;
            let now = Instant::now();
            if let Some(entry) = remembered.by_hash.get_mut(&hash) {
                if entry.is_fresh(now) {
                    return Ok(entry.caller());
                }
                // The others go on with what is known while this request asks.
                if entry.caller.is_some() {
                    entry.checked_at = now;
                }
            }
            generation
        };
        let found = api_keys::find_by_hash(&self.db, &hash).await;
        let mut remembered = self.lock();
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                remembered.by_hash.remove(&hash);
                return Err(error);
            }
        };
        let entry = Entry {
            expires_at: found.as_ref().and_then(|key| key.expires_at),
            caller: found.map(|key| {
                Arc::new(Caller {
                    key: Some(key.id),
                    name: key.name,
                    scopes: key.scopes,
                    expires_at: key.expires_at,
                })
            }),
            checked_at: Instant::now(),
        };
        let caller = entry.caller();
        if remembered.generation == generation {
            if remembered.by_hash.len() >= REMEMBERED_MAX {
                remembered.by_hash.clear();
            }
            remembered.by_hash.insert(hash, entry);
        }
        Ok(caller)
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The secret in `Authorization: Bearer SECRET`.
fn bearer(request: &Request) -> Option<&str> {
    let (scheme, secret) = request.header(header::AUTHORIZATION)?.split_once(' ')?;
    let secret = secret.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty()).then_some(secret)
}

fn query_key(request: &Request) -> Option<String> {
    let query: Vec<(String, String)> = request.params().ok()?;
    query
        .into_iter()
        .find(|(name, value)| name == "key" && !value.is_empty())
        .map(|(_, value)| value)
}

fn unauthorized(detail: &'static str, challenge: &'static str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static(challenge),
    )
}

/// A scope as a type, so that an operation says in its signature what it needs.
pub trait Scope: Send + Sync + 'static {
    /// As keys have it.
    const NAME: &'static str;
}

macro_rules! scopes {
    ($($name:ident = $text:literal),* $(,)?) => {$(
        #[doc = concat!("`", $text, "`")]
        pub struct $name;

        impl Scope for $name {
            const NAME: &'static str = $text;
        }
    )*};
}

scopes! {
    WorkflowsRead = "workflows:read",
    WorkflowsWrite = "workflows:write",
    WorkflowsRun = "workflows:run",
    ExecutionsRead = "executions:read",
    ExecutionsWrite = "executions:write",
    AgentsRead = "agents:read",
    AgentsWrite = "agents:write",
    AgentsRun = "agents:run",
    CredentialsWrite = "credentials:write",
    KeysWrite = "keys:write",
}

/// A caller with scope `S`. An operation that takes it first is refused before anything else is looked at.
pub struct Auth<S>(pub Arc<Caller>, PhantomData<S>);

/// As [`Auth`]; the key may also come as `?key=`.
pub struct StreamAuth<S>(PhantomData<S>);

const HEADER_SCHEME: &str = "key";
const QUERY_SCHEME: &str = "query_key";

fn register_schemes(registry: &mut Registry) {
    let scheme = |ty, description| MetaSecurityScheme {
        ty,
        description: Some(description),
        name: None,
        key_in: None,
        scheme: None,
        bearer_format: None,
        flows: None,
        openid_connect_url: None,
    };
    registry.create_security_scheme(
        HEADER_SCHEME,
        MetaSecurityScheme {
            scheme: Some("bearer"),
            ..scheme(
                "http",
                "An API key with the scope that the operation names.",
            )
        },
    );
    registry.create_security_scheme(
        QUERY_SCHEME,
        MetaSecurityScheme {
            name: Some("key"),
            key_in: Some("query"),
            ..scheme(
                "apiKey",
                "The same key, for event streams only: browsers cannot send headers with them.",
            )
        },
    );
}

impl<'a, S: Scope> ApiExtractor<'a> for Auth<S> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        register_schemes(registry);
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![HEADER_SCHEME]
    }

    async fn from_request(
        request: &'a Request,
        _: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let caller = State::of(request)?.keys.caller(request, false).await?;
        caller.require(S::NAME)?;
        Ok(Self(caller, PhantomData))
    }
}

impl<'a, S: Scope> ApiExtractor<'a> for StreamAuth<S> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        register_schemes(registry);
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![HEADER_SCHEME, QUERY_SCHEME]
    }

    async fn from_request(
        request: &'a Request,
        _: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        State::of(request)?
            .keys
            .caller(request, true)
            .await?
            .require(S::NAME)?;
        Ok(Self(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(scopes: &[&str]) -> Caller {
        Caller {
            key: None,
            name: "k".into(),
            scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
            expires_at: None,
        }
    }

    #[test]
    fn a_scope_is_held_by_name_or_by_being_admin() {
        assert!(caller(&["workflows:read"]).may("workflows:read"));
        assert!(caller(&["*"]).may("workflows:read"));
        assert!(caller(&["admin"]).may("keys:write"));
        assert!(!caller(&["workflows:write"]).may("workflows:read"));
        assert!(!caller(&["workflows:*"]).may("workflows:read"));
        assert!(!caller(&[]).may("workflows:read"));
    }

    #[tokio::test]
    async fn a_refusal_names_the_scope() {
        let error = caller(&[])
            .require("workflows:run")
            .expect_err("it has no scopes");
        let response = error.into_response("t");
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let body: serde_json::Value = response.into_body().into_json().await.expect("it is JSON");
        assert_eq!(body["scope"], "workflows:run");
    }

    #[test]
    fn only_bearer_credentials_count() {
        let with = |value: &'static str| Request::builder().header("Authorization", value).finish();
        assert_eq!(bearer(&with("Bearer cb_x")), Some("cb_x"));
        assert_eq!(bearer(&with("bearer  cb_x ")), Some("cb_x"));
        assert_eq!(bearer(&with("Basic cb_x")), None);
        assert_eq!(bearer(&with("Bearer ")), None);
    }

    #[test]
    fn an_expired_key_is_refused_however_fresh() {
        let entry = |expires_at| Entry {
            caller: Some(Arc::new(caller(&[]))),
            expires_at,
            checked_at: Instant::now(),
        };
        assert!(entry(None).caller().is_some());
        assert!(
            entry(Some(Utc::now() + Duration::from_secs(60)))
                .caller()
                .is_some()
        );
        assert!(entry(Some(Utc::now())).caller().is_none());
    }
}
