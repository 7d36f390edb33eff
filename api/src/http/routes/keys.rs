//! API keys.

use std::sync::Arc;

use callboard_runtime::{
    id::KeyId,
    store::{
        LIMIT_MAX,
        api_keys::{self, ApiKey, NewApiKey},
    },
};
use chrono::{DateTime, Utc};
use poem::http::StatusCode;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
};
use serde::Serialize;
use uuid::Uuid;

use super::Tag;
use crate::http::{
    State,
    answer::{self, Created, Found, NoContent},
    auth::{self, Auth, Caller, KeysWrite},
    input::{Body, BodyType, Cursor, Faults, FieldType, Fields, Limit, Param, Wrong, no_nul},
    keys,
    problem::{ApiError, ApiResult},
};

/// How many scopes a key may have.
const SCOPES_MAX: usize = 64;
/// How long a name or a scope may be, in bytes.
const NAME_MAX: usize = 128;

pub struct Operations(pub Arc<State>);

/// A key to be made.
#[derive(Object)]
struct KeyCreate {
    /// What it is for; not unique.
    #[oai(validator(min_length = 1, max_length = 128))]
    name: String,
    /// What it may do; only what the caller's own key may.
    #[oai(validator(min_items = 1, max_items = 64))]
    scopes: Vec<String>,
    /// When it stops working; never unless said.
    expires_at: Option<DateTime<Utc>>,
}

impl BodyType for KeyCreate {
    fn read(fields: &mut Fields) -> Option<Self> {
        let name: Option<String> = fields.required("name");
        match &name {
            Some(name) if name.trim().is_empty() => {
                fields.fault(
                    "name",
                    Wrong::new(
                        "string_too_short",
                        "String should have at least 1 character",
                    ),
                );
            }
            Some(name) if name.contains('\0') => fields.fault("name", no_nul()),
            Some(name) if name.len() > NAME_MAX => {
                fields.fault(
                    "name",
                    Wrong::new(
                        "string_too_long",
                        format!("String should have at most {NAME_MAX} characters"),
                    ),
                );
            }
            _ => {}
        }
        let scopes = read_scopes(fields);
        let expires_at: Option<DateTime<Utc>> = fields.optional("expires_at");
        if expires_at.is_some_and(|end| end <= Utc::now()) {
            fields.fault(
                "expires_at",
                Wrong::new("datetime_future", "Input should be in the future"),
            );
        }
        Some(Self {
            name: name?,
            scopes: scopes?,
            expires_at,
        })
    }
}

fn read_scopes(fields: &mut Fields) -> Option<Vec<String>> {
    let values: Vec<serde_json::Value> = fields.required("scopes")?;
    if values.is_empty() {
        fields.fault(
            "scopes",
            Wrong::new(
                "too_short",
                "List should have at least 1 item after validation, not 0",
            ),
        );
    }
    if values.len() > SCOPES_MAX {
        let msg = format!(
            "List should have at most {SCOPES_MAX} items after validation, not {}",
            values.len()
        );
        fields.fault("scopes", Wrong::new("too_long", msg));
        return None;
    }
    let mut scopes = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        match String::from_json(value) {
            Ok(scope) if is_scope(&scope) => scopes.push(scope),
            Ok(_) => fields.fault_at(
                "scopes",
                index,
                Wrong::new(
                    "value_error",
                    "Value error, a scope is `*`, `admin` or like `workflows:read`",
                ),
            ),
            Err(wrong) => fields.fault_at("scopes", index, wrong),
        }
    }
    Some(scopes)
}

/// `*`, `admin`, or two names around a colon. Which names mean something depends on what the system has.
fn is_scope(text: &str) -> bool {
    let name = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    let pair = |(resource, action)| name(resource) && name(action);
    text.len() <= NAME_MAX
        && (text == "*" || text == "admin" || text.split_once(':').is_some_and(pair))
}

/// A key as it was made. The only answer that has its secret.
#[derive(Object, Serialize)]
struct KeyDetails {
    /// Its id.
    id: Uuid,
    /// What it is for.
    name: String,
    /// What it may do.
    scopes: Vec<String>,
    /// When it stops working.
    expires_at: Option<DateTime<Utc>>,
    /// The secret, for `Authorization: Bearer`. Shown once.
    key: String,
}

/// A key, without its secret.
#[derive(Object, Serialize)]
struct KeyListItem {
    /// Its id.
    id: Uuid,
    /// What it is for.
    name: String,
    /// What it may do.
    scopes: Vec<String>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it stops working.
    expires_at: Option<DateTime<Utc>>,
}

/// A page of keys.
#[derive(Object, Serialize)]
struct KeyList {
    /// The page.
    data: Vec<KeyListItem>,
    /// For `cursor`, when there is more.
    next_cursor: Option<String>,
}

/// Nobody gives away what they do not have, nor for longer.
fn check_grant(
    caller: &Caller,
    scopes: &[String],
    expires_at: Option<DateTime<Utc>>,
) -> ApiResult<()> {
    if let Some(end) = caller.expires_at
        && expires_at.is_none_or(|asked| asked > end)
    {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "key_expires",
            format!("This key expires: it makes keys with `expires_at` of at most {end:?} only."),
        ));
    }
    scopes.iter().try_for_each(|scope| match scope.as_str() {
        // Both mean everything, so either may give the other.
        "*" | "admin" => caller.require("admin"),
        scope => caller.require(scope),
    })
}

#[OpenApi(prefix_path = "/v1/keys", tag = "Tag::Keys")]
impl Operations {
    /// List keys
    ///
    /// Newest first, without revoked ones. Scope `keys:write`.
    #[oai(path = "/", method = "get", operation_id = "list_keys")]
    async fn list(
        &self,
        _auth: Auth<KeysWrite>,
        limit: Query<Option<Param<Limit>>>,
        cursor: Query<Option<Param<Cursor<KeyId>>>>,
    ) -> ApiResult<Found<KeyList>> {
        let mut faults = Faults::default();
        let limit = faults.query("limit", limit.0).unwrap_or_default();
        let before = faults.query("cursor", cursor.0).map(|cursor| cursor.0);
        faults.check(Some(()))?;
        let rows = self.unrevoked(before, limit.0).await?;
        let (page, next_cursor) = answer::page(rows, limit.0, |last| Cursor(last.id).encode());
        let item = |row: ApiKey| KeyListItem {
            id: row.id.0,
            name: row.name,
            scopes: row.scopes,
            created_at: row.created_at,
            expires_at: row.expires_at,
        };
        Ok(Found::new(KeyList {
            data: page.into_iter().map(item).collect(),
            next_cursor,
        }))
    }

    /// Make a key
    ///
    /// The answer is the only one with the secret. A key can give no scope that it does not have, and no time that
    /// it has not got itself. Scope `keys:write`.
    #[oai(path = "/", method = "post", operation_id = "create_key")]
    async fn create(
        &self,
        auth: Auth<KeysWrite>,
        body: Body<KeyCreate>,
    ) -> ApiResult<Created<KeyDetails>> {
        let mut faults = Faults::default();
        let body = faults.body(body);
        let KeyCreate {
            name,
            scopes,
            expires_at,
        } = faults.check(body)?;
        check_grant(&auth.0, &scopes, expires_at)?;
        let secret = keys::generate();
        let key = NewApiKey {
            id: KeyId::new(),
            name,
            hash: auth::hash(&secret).to_vec(),
            scopes,
            expires_at,
        };
        let ApiKey {
            id,
            name,
            scopes,
            expires_at,
            ..
        } = api_keys::insert(&self.0.app.core.db, &key).await?;
        self.0.keys.forget();
        let place = format!("/v1/keys/{id}");
        Ok(Created::new(KeyDetails {
            id: id.0,
            name,
            scopes,
            expires_at,
            key: secret,
        })
        .at(place))
    }

    /// Revoke a key
    ///
    /// At once on this host, within seconds on others. Scope `keys:write`.
    #[oai(path = "/:id", method = "delete", operation_id = "delete_key")]
    async fn delete(&self, _auth: Auth<KeysWrite>, id: Path<Param<KeyId>>) -> ApiResult<NoContent> {
        let mut faults = Faults::default();
        let id = faults.path("id", id.0);
        let id = faults.check(id)?;
        let revoked = match self.find(id).await? {
            Some(_) => api_keys::revoke(&self.0.app.core.db, id).await,
            None => Ok(false),
        };
        self.0.keys.forget();
        if revoked? {
            Ok(NoContent)
        } else {
            Err(ApiError::not_found(format!("There is no key {id}.")))
        }
    }
}

impl Operations {
    /// The key of this id, unless it is revoked: the first of a page that begins with it.
    async fn find(&self, id: KeyId) -> ApiResult<Option<ApiKey>> {
        let before = KeyId(Uuid::from_u128(id.0.as_u128().saturating_add(1)));
        let page = api_keys::list(&self.0.app.core.db, Some(before), 1).await?;
        Ok(page
            .into_iter()
            .find(|key| key.id == id && key.revoked_at.is_none()))
    }

    /// One key more than `limit`, if there are as many; the store lists revoked ones too.
    async fn unrevoked(&self, mut before: Option<KeyId>, limit: usize) -> ApiResult<Vec<ApiKey>> {
        let mut keys = Vec::new();
        while keys.len() <= limit {
            let rows = api_keys::list(&self.0.app.core.db, before, LIMIT_MAX).await?;
            before = rows.last().map(|row| row.id);
            let all = (rows.len() as i64) < LIMIT_MAX;
            keys.extend(rows.into_iter().filter(|row| row.revoked_at.is_none()));
            if all {
                break;
            }
        }
        keys.truncate(limit + 1);
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_have_a_form() {
        for scope in ["*", "admin", "workflows:read", "line-item:all"] {
            assert!(is_scope(scope), "{scope}");
        }
        for text in [
            "",
            "workflows",
            ":read",
            "workflows:",
            "a:b:c",
            "a b:c",
            "**",
        ] {
            assert!(!is_scope(text), "{text}");
        }
    }

    #[test]
    fn a_key_gives_only_what_it_has() {
        let caller = |scopes: &[&str]| Caller {
            key: None,
            name: "k".into(),
            scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
            expires_at: None,
        };
        let check_grant = |caller: &Caller, scopes: &[String]| check_grant(caller, scopes, None);
        let asked = |scope: &str| vec![scope.to_owned()];
        assert!(check_grant(&caller(&["keys:write"]), &asked("workflows:read")).is_err());
        assert!(
            check_grant(
                &caller(&["keys:write", "workflows:read"]),
                &asked("workflows:read")
            )
            .is_ok()
        );
        assert!(check_grant(&caller(&["keys:write"]), &asked("*")).is_err());
        assert!(check_grant(&caller(&["admin"]), &asked("*")).is_ok());
        assert!(check_grant(&caller(&["*"]), &asked("admin")).is_ok());
    }

    #[test]
    fn a_key_that_expires_makes_none_that_outlives_it() {
        let end = Utc::now() + chrono::TimeDelta::hours(1);
        let caller = Caller {
            key: None,
            name: "k".into(),
            scopes: vec!["*".to_owned()],
            expires_at: Some(end),
        };
        let second = chrono::TimeDelta::seconds(1);
        assert!(check_grant(&caller, &[], None).is_err());
        assert!(check_grant(&caller, &[], Some(end + second)).is_err());
        assert!(check_grant(&caller, &[], Some(end)).is_ok());
        assert!(check_grant(&caller, &[], Some(end - second)).is_ok());
    }
}
