//! Limits by name, as a client sets and sees them.

use domus_api::Limit;
use shared_abi::control::Rate;

use crate::value::rate::RateText;

/// One limit: its name in the API, where a change of it is written (`F`), and its value among those in force (`L`).
pub struct Named<F: 'static, L: 'static> {
    pub name: &'static str,
    pub change: fn(&mut F) -> &mut Option<RateText>,
    pub value: fn(&L) -> Option<Rate>,
}

/// The changes that a client asks for.
///
/// # Errors
/// One line that names the limit and what would be accepted.
pub fn change<F: Default, L>(table: &[Named<F, L>], limits: &[Limit]) -> Result<F, String> {
    let mut change = F::default();
    for Limit { name, rate } in limits {
        let Some(limit) = table.iter().find(|limit| limit.name == name) else {
            let name: String = name.chars().take(64).collect();
            let names: Vec<_> = table.iter().map(|limit| limit.name).collect();
            let (last, others) = names.split_last().unwrap_or((&"none", &[]));
            return Err(format!("there is no limit \"{name}\": {} and {last} are", others.join(", ")));
        };
        let rate: RateText = rate.parse().map_err(|error| format!("{name}: {error}"))?;
        *(limit.change)(&mut change) = Some(rate);
    }
    Ok(change)
}

/// The limits in force, as a client would set them.
pub fn shown<F, L>(table: &[Named<F, L>], limits: &L) -> Vec<Limit> {
    let set = table.iter().filter_map(|limit| Some((limit.name, (limit.value)(limits)?)));
    set.map(|(name, value)| Limit { name: name.into(), rate: rate(value) }).collect()
}

fn rate(Rate { per_second, burst, burst_seconds }: Rate) -> String {
    match (burst == per_second, burst_seconds) {
        (true, 1) => per_second.to_string(),
        _ => format!("{per_second}:{burst}:{burst_seconds}"),
    }
}
