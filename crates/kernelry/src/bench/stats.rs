//! Order statistics of repeated timings.

/// Summary of repeated timings of one launch, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Number of timings.
    pub samples: usize,
    /// Fastest.
    pub min: f64,
    /// Tenth percentile.
    pub p10: f64,
    /// Median, from which rates are computed.
    pub p50: f64,
    /// Ninetieth percentile.
    pub p90: f64,
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation; zero for fewer than two timings.
    pub stddev: f64,
}

impl Stats {
    /// Summarises timings. Percentiles interpolate linearly between neighbours; no timings give zeros.
    pub fn new(timings: &[f64]) -> Stats {
        let mut sorted = timings.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let at = |q: f64| -> f64 {
            let x = q * n.saturating_sub(1) as f64;
            let low = sorted.get(x.floor() as usize).copied().unwrap_or(0.0);
            let high = sorted.get(x.ceil() as usize).copied().unwrap_or(low);
            low + (high - low) * x.fract()
        };
        let mean = sorted.iter().sum::<f64>() / n.max(1) as f64;
        let squares: f64 = sorted.iter().map(|t| (t - mean) * (t - mean)).sum();
        let stddev = if n < 2 { 0.0 } else { (squares / (n - 1) as f64).sqrt() };
        Stats { samples: n, min: at(0.0), p10: at(0.1), p50: at(0.5), p90: at(0.9), mean, stddev }
    }
}

#[cfg(test)]
mod tests {
    use super::Stats;

    #[test]
    fn percentiles_of_a_known_list() {
        let timings: Vec<f64> = (0..=10).rev().map(f64::from).collect();
        let s = Stats::new(&timings);
        assert_eq!((s.samples, s.min, s.p10, s.p50, s.p90, s.mean), (11, 0.0, 1.0, 5.0, 9.0, 5.0));
        // Sum of squares 110 over 10.
        assert!((s.stddev - 11f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn percentiles_interpolate() {
        assert_eq!(Stats::new(&[1.0, 2.0]).p50, 1.5);
    }

    #[test]
    fn few_timings() {
        assert_eq!(Stats::new(&[]), Stats::default());
        assert_eq!(Stats::new(&[3.0]), Stats { samples: 1, min: 3.0, p10: 3.0, p50: 3.0, p90: 3.0, mean: 3.0, stddev: 0.0 });
    }
}
