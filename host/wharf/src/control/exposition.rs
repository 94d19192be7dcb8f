//! Which text format of metrics a scraper takes: OpenMetrics, which Prometheus asks
//! for first, or the older one of Prometheus itself.

use std::collections::BTreeSet;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

/// How metrics are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Classic,
}

impl Exposition {
    /// The format that a request prefers (RFC 9110, section 12.5.1). Who does not
    /// say gets OpenMetrics, and so does who takes neither: `curl` shows it then.
    pub(super) fn asked_for(headers: &HeaderMap) -> Self {
        let accept = headers.get_all(ACCEPT).iter();
        let accept: Vec<&str> = accept.filter_map(|value| value.to_str().ok()).collect();
        let accept = accept.join(",");
        let open = quality(&accept, "application", "openmetrics-text");
        let classic = quality(&accept, "text", "plain");
        if classic > open {
            Self::Classic
        } else {
            Self::OpenMetrics
        }
    }

    /// Its media type.
    pub(super) const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Metrics in this format, of what they are in OpenMetrics.
    pub(super) fn write(self, metrics: String) -> String {
        match self {
            Self::OpenMetrics => metrics,
            Self::Classic => classic(&metrics),
        }
    }
}

/// How much a media type is wanted, in thousandths: as much as the range says that
/// names it most exactly.
fn quality(accept: &str, kind: &str, subtype: &str) -> u32 {
    let mut best = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let exactness = match name.split_once('/') {
            Some((k, s)) if k == kind && s == subtype => 3,
            Some((k, "*")) if k == kind => 2,
            Some(("*", "*")) => 1,
            _ => continue,
        };
        let q = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let q = q.map_or(1000, thousandths);
        best = best.max((exactness, q));
    }
    best.1
}

/// `1`, `0.5` or `0.125` as thousandths; 0 for what is no such number.
fn thousandths(q: &str) -> u32 {
    let (whole, fraction) = q.split_once('.').unwrap_or((q, ""));
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    match (whole, digits.parse::<u16>()) {
        ("1", _) => 1000,
        ("0", Ok(digits)) => digits.into(),
        _ => 0,
    }
}

/// The older format names a counter as its sample is named, and knows neither units
/// nor an end.
fn classic(metrics: &str) -> String {
    let of_type = |line: &&str| line.starts_with("# TYPE ") && line.ends_with(" counter");
    let counters: BTreeSet<&str> = metrics
        .lines()
        .filter(of_type)
        .filter_map(|line| line.split(' ').nth(2))
        .collect();
    let mut text = String::with_capacity(metrics.len());
    for line in metrics.lines() {
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(about), Some(name), Some(rest)) if counters.contains(name) => {
                text.extend(["# ", about, " ", name, "_total ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;
    use axum::http::header::ACCEPT;

    use super::{Exposition, classic};

    fn asked(accept: &[&str]) -> Exposition {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        Exposition::asked_for(&headers)
    }

    #[test]
    fn everybody_gets_what_they_asked_for() {
        use Exposition::{Classic, OpenMetrics};
        for (accept, expected) in [
            (&[][..], OpenMetrics),
            (&["*/*"], OpenMetrics),
            // Prometheus 2 and 3.
            (
                &["application/openmetrics-text;version=1.0.0;q=0.5,\
                   application/openmetrics-text;version=0.0.1;q=0.4,\
                   text/plain;version=0.0.4;q=0.3,*/*;q=0.2"],
                OpenMetrics,
            ),
            (
                &[
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                     application/openmetrics-text;version=0.0.1;q=0.5,\
                     text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                     text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                ],
                OpenMetrics,
            ),
            (&["text/plain;version=0.0.4;q=1,*/*;q=0.1"], Classic),
            (&["TEXT/plain"], Classic),
            (&["text/*;q=0.2", "application/*;q=0.1"], Classic),
            (
                &["application/openmetrics-text;q=0, text/plain;q=0.001"],
                Classic,
            ),
            (&["application/json"], OpenMetrics),
            (
                &["text/plain;q=nan", ";;;,,q=,/", "\"text/plain"],
                OpenMetrics,
            ),
        ] {
            assert_eq!(asked(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn the_older_format_names_counters_by_their_samples() {
        let metrics = "# HELP w_run_seconds Time spent.\n# TYPE w_run_seconds counter\n\
                       # UNIT w_run_seconds seconds\nw_run_seconds_total{task=\"a\"} 1.5\n\
                       # HELP w_tasks Tasks, all.\n# TYPE w_tasks gauge\nw_tasks 1\n# EOF\n";
        assert_eq!(
            classic(metrics),
            "# HELP w_run_seconds_total Time spent.\n# TYPE w_run_seconds_total counter\n\
             w_run_seconds_total{task=\"a\"} 1.5\n\
             # HELP w_tasks Tasks, all.\n# TYPE w_tasks gauge\nw_tasks 1\n"
        );
    }
}
