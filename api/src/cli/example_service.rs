//! The small HTTP service that the examples call: people, orders, stock and carriers, the same on every machine.
//!
//! It keeps nothing but which carrier requests it has seen, to fail each of them once.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use poem::{
    Endpoint, EndpointExt, Request, Response, Route, Server, get, handler,
    http::StatusCode,
    listener::{Acceptor, Listener, TcpListener},
    web::{Data, Json, Path, Query},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Failure, examples, output::Output};
use crate::config;

/// How many requests are remembered before all are forgotten.
const SEEN_MAX: usize = 10_000;

/// Flags of `example-service`.
#[derive(clap::Args)]
pub struct ExampleServiceArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = examples::SERVICE)]
    listen: String,
}

/// Serves until the process ends.
pub async fn run(args: &ExampleServiceArgs, output: &Output) -> Result<(), Failure> {
    let address = config::address(&args.listen)
        .map_err(|error| Failure::Usage(format!("--listen: {error}")))?;
    let service = ExampleService::bind(&address.to_string())
        .await
        .map_err(|error| crate::serve::cannot_listen(address, &error))?;
    output.line(format!("example service on http://{}", service.address));
    service.serve().await;
    Ok(())
}

/// The service, bound to a port.
pub struct ExampleService {
    /// Where it listens.
    pub address: String,
    acceptor: poem::listener::TcpAcceptor,
}

impl ExampleService {
    /// Binds a port; 0 takes a free one.
    pub async fn bind(address: &str) -> std::io::Result<Self> {
        let acceptor = TcpListener::bind(address.to_owned())
            .into_acceptor()
            .await?;
        let address = acceptor
            .local_addr()
            .iter()
            .find_map(|local| Some(local.as_socket_addr()?.to_string()));
        Ok(Self {
            address: address.unwrap_or_default(),
            acceptor,
        })
    }

    /// Serves for ever.
    pub async fn serve(self) {
        // It only ends when its listener breaks, and then every request to it says so.
        if let Err(error) = Server::new_with_acceptor(self.acceptor).run(routes()).await {
            tracing::warn!(%error, "the example service has stopped");
        }
    }
}

fn routes() -> impl Endpoint<Output = Response> {
    Route::new()
        .at("/people", get(person))
        .at("/orders/:id", get(order))
        .at("/customers/:email/orders", get(orders_of))
        .at("/stock/:sku", get(stock))
        .at("/carriers/:name/quote", get(quote))
        .data(Arc::new(Seen::default()))
        .map_to_response()
}

fn found(value: Option<Value>, what: &str) -> Result<Json<Value>, poem::Error> {
    value.map(Json).ok_or_else(|| {
        let body = json!({"error": format!("there is no {what}")}).to_string();
        poem::Error::from_response(
            Response::builder()
                .status(StatusCode::NOT_FOUND)
                .content_type("application/json")
                .body(body),
        )
    })
}

#[derive(Deserialize)]
struct PersonQuery {
    email: String,
}

/// Who somebody is and whom they work for.
#[handler]
fn person(Query(query): Query<PersonQuery>) -> Result<Json<Value>, poem::Error> {
    let person = match query.email.as_str() {
        "ada@analytical.example" => json!({
            "name": "Ada Byron", "title": "Head of Engines", "company": "Analytical Works", "employees": 420, "country": "GB",
        }),
        "emil@kiosk.example" => json!({
            "name": "Emil Tisch", "title": "Owner", "company": "Kiosk am Eck", "employees": 2, "country": "DE",
        }),
        "mina@harbour.example" => json!({
            "name": "Mina Sato", "title": "Purchasing", "company": "Harbour Freight Forwarding", "employees": 75, "country": "JP",
        }),
        _ => return found(None, "person with this address"),
    };
    found(Some(person), "person")
}

const ORDERS: [(&str, &str, &str, &str, &str); 3] = [
    (
        "A-1001",
        "ada@analytical.example",
        "shipped",
        "2026-02-27",
        "brass gears, 12 pieces",
    ),
    (
        "A-1002",
        "ada@analytical.example",
        "processing",
        "2026-03-02",
        "punched cards, 1 box",
    ),
    (
        "A-1003",
        "emil@kiosk.example",
        "delivered",
        "2026-01-15",
        "counter bell",
    ),
];

fn order_json((id, customer, status, date, contents): (&str, &str, &str, &str, &str)) -> Value {
    json!({"id": id, "customer": customer, "status": status, "ordered_on": date, "contents": contents})
}

/// Where an order is.
#[handler]
fn order(Path(id): Path<String>) -> Result<Json<Value>, poem::Error> {
    found(
        ORDERS.into_iter().find(|row| row.0 == id).map(order_json),
        "order with this number",
    )
}

/// Everything a customer ordered; nothing is an answer too.
#[handler]
fn orders_of(Path(email): Path<String>) -> Json<Value> {
    let orders: Vec<Value> = ORDERS
        .into_iter()
        .filter(|row| row.1 == email)
        .map(order_json)
        .collect();
    Json(json!({"customer": email, "orders": orders}))
}

#[derive(Deserialize)]
struct StockQuery {
    #[serde(default = "one")]
    quantity: u32,
}

fn one() -> u32 {
    1
}

/// Price and weight of a line of an order.
#[handler]
fn stock(
    Path(sku): Path<String>,
    Query(query): Query<StockQuery>,
) -> Result<Json<Value>, poem::Error> {
    let item = match sku.as_str() {
        "gear" => Some(("Brass gear", 1_250, 400, 96)),
        "card" => Some(("Punched card", 15, 3, 20_000)),
        "bell" => Some(("Counter bell", 1_900, 650, 0)),
        _ => None,
    };
    let quantity = query.quantity;
    let line = item.map(|(name, cents, grams, in_stock)| {
        json!({
            "sku": sku, "name": name, "quantity": quantity, "available": in_stock >= quantity,
            "price_cents": u64::from(quantity) * cents, "weight_g": u64::from(quantity) * grams,
        })
    });
    found(line, "article with this number")
}

/// Which requests have come before, by their idempotency keys.
#[derive(Default)]
struct Seen(Mutex<HashSet<String>>);

impl Seen {
    fn is_new(&self, key: &str) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= SEEN_MAX {
            seen.clear();
        }
        seen.insert(key.to_owned())
    }
}

#[derive(Deserialize)]
struct QuoteQuery {
    weight_g: u32,
}

/// What a carrier asks for a parcel. `swift` is busy at the first request of each kind, so that a retry can be seen.
#[handler]
fn quote(
    request: &Request,
    Path(name): Path<String>,
    Query(query): Query<QuoteQuery>,
    Data(seen): Data<&Arc<Seen>>,
) -> Result<Json<Value>, poem::Error> {
    let (base, per_kg, days) = match name.as_str() {
        "swift" => (900, 210, 1),
        "steady" => (450, 120, 4),
        _ => return found(None, "carrier of this name"),
    };
    let key = request.header("idempotency-key");
    if name == "swift" && key.is_some_and(|key| seen.is_new(key)) {
        let busy = Response::builder()
            .status(StatusCode::SERVICE_UNAVAILABLE)
            .body("busy, try again");
        return Err(poem::Error::from_response(busy));
    }
    let cents = base + per_kg * u64::from(query.weight_g).div_ceil(1_000);
    found(
        Some(json!({"carrier": name, "price_cents": cents, "days": days})),
        "quote",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(path: &str, key: Option<&str>) -> (u16, Value) {
        get_from(&routes(), path, key).await
    }

    async fn get_from(
        routes: &impl Endpoint<Output = Response>,
        path: &str,
        key: Option<&str>,
    ) -> (u16, Value) {
        let mut request = Request::builder().uri_str(path);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let response = routes.get_response(request.finish()).await;
        let status = response.status().as_u16();
        (
            status,
            response.into_body().into_json().await.unwrap_or_default(),
        )
    }

    #[tokio::test]
    async fn people_orders_and_stock_are_found_or_not() {
        assert_eq!(
            get("/people?email=ada@analytical.example", None).await.1["employees"],
            420
        );
        assert_eq!(get("/people?email=nobody@example.com", None).await.0, 404);
        assert_eq!(get("/orders/A-1001", None).await.1["status"], "shipped");
        assert_eq!(get("/orders/B-1", None).await.0, 404);
        let orders = get("/customers/ada@analytical.example/orders", None)
            .await
            .1;
        assert_eq!(orders["orders"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            get("/stock/gear?quantity=2", None).await.1["price_cents"],
            2_500
        );
        assert_eq!(get("/stock/anvil", None).await.0, 404);
    }

    #[tokio::test]
    async fn a_busy_carrier_answers_the_second_time() {
        let routes = routes();
        let path = "/carriers/swift/quote?weight_g=1200";
        assert_eq!(get_from(&routes, path, Some("a")).await.0, 503);
        assert_eq!(
            get_from(&routes, path, Some("a")).await.1["price_cents"],
            1_320
        );
        assert_eq!(get_from(&routes, path, Some("b")).await.0, 503);
        assert_eq!(
            get_from(&routes, "/carriers/steady/quote?weight_g=1200", Some("c"))
                .await
                .0,
            200
        );
    }
}
