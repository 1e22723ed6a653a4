//! The currencies that a payment can be made in: the active codes of ISO 4217 that are money in circulation, without funds, precious
//! metals and codes for testing.

/// In alphabetical order.
const ACTIVE: &str = "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP \
CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD \
IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN \
MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP \
STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG";

/// Whether this is such a code: three capital letters.
pub(crate) fn is_active(code: &str) -> bool {
    code.len() == 3 && ACTIVE.split(' ').any(|active| active == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_well_formed_and_knows_what_is_money() {
        let codes: Vec<_> = ACTIVE.split(' ').collect();
        assert!(codes.iter().all(|code| code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase())));
        assert!(codes.is_sorted_by(|a, b| a < b), "each once, in order");
        for code in ["EUR", "USD", "JPY", "BHD", "XOF", "AED", "ZWG"] {
            assert!(is_active(code), "{code}");
        }
        for code in ["", "eur", "EURO", "E", "XXX", "XTS", "XAU", "DEM", "ZZZ", "EUR USD", "UR "] {
            assert!(!is_active(code), "{code:?}");
        }
    }
}
