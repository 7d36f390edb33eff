// A small immutable date and time in a zone, with the names and formats that n8n's users know.
(function (host) {
    'use strict';
    const UNITS = ['year', 'month', 'day', 'hour', 'minute', 'second', 'millisecond'];
    const FIXED = { week: 604800000, day: 86400000, hour: 3600000, minute: 60000, second: 1000, millisecond: 1 };
    const MONTHS = ['January', 'February', 'March', 'April', 'May', 'June', 'July', 'August', 'September', 'October',
        'November', 'December'];
    const DAYS = ['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday'];
    const PATTERN = /'[^']*'|yyyy|yy|y|L{1,4}|M{1,4}|dd?|E{3,4}|E|c{3,4}|c|HH?|hh?|mm?|ss?|SSS|S|u|a|Z{1,4}|z|ooo|o|q|WW?|kkkk|X|x|[^]/g;
    const ISO = /^([+-]\d{6}|\d{4})(?:-?(\d\d)(?:-?(\d\d))?)?(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?$/i;

    const unit = (name) => {
        const singular = String(name).toLowerCase().replace(/s$/, '');
        if (singular === 'quarter' || singular === 'week' || UNITS.includes(singular)) return singular;
        throw new Error(`\`${name}\` is no unit of time`);
    };
    const pad = (number, width) => {
        const digits = String(Math.abs(number)).padStart(width, '0');
        return number < 0 ? `-${digits}` : digits;
    };
    const fixedZone = /^(?:UTC)?([+-])(\d{1,2})(?::?(\d\d))?$/i;
    const zoneName = (zone) => {
        const name = zone === undefined || zone === 'local' || zone === 'system' || zone === 'default'
            ? host.zone() : String(zone);
        if (!fixedZone.test(name)) host.offset(name, 0);
        return name;
    };
    const offsetAt = (zone, millis) => {
        const fixed = fixedZone.exec(zone);
        if (!fixed) return host.offset(zone, millis);
        return (fixed[1] === '-' ? -1 : 1) * (Number(fixed[2]) * 60 + Number(fixed[3] ?? 0));
    };
    const fromLocal = (zone, local) =>
        fixedZone.test(zone) ? local - offsetAt(zone, local) * 60000 : host.fromLocal(zone, local);
    const utc = (year, month, day, hour, minute, second, millisecond) => {
        const date = new Date(0);
        date.setUTCFullYear(year, month - 1, day);
        date.setUTCHours(hour, minute, second, millisecond);
        return date.getTime();
    };
    const daysIn = (year, month) => new Date(utc(year, month + 1, 0, 0, 0, 0, 0)).getUTCDate();

    class DateTime {
        #millis;
        #zone;
        #fields;

        constructor(millis, zone) {
            millis = Number(millis);
            if (!(Math.abs(millis) <= 8e15)) throw new Error('this is no date');
            this.#millis = Math.trunc(millis);
            this.#zone = zoneName(zone);
        }

        static now() { return new DateTime(host.now()); }
        static local(...fields) { return fields.length ? DateTime.#of(fields, host.zone()) : DateTime.now(); }
        static utc(...fields) {
            return fields.length ? DateTime.#of(fields, 'UTC') : new DateTime(host.now(), 'UTC');
        }
        static fromMillis(millis, options) { return new DateTime(millis, options?.zone); }
        static fromSeconds(seconds, options) { return new DateTime(seconds * 1000, options?.zone); }
        static fromJSDate(date, options) { return new DateTime(date.getTime(), options?.zone); }
        static fromObject(fields, options) {
            const now = DateTime.now();
            const names = Object.keys(fields).map(unit);
            const first = Math.max(...names.map((name) => UNITS.indexOf(name)));
            const values = UNITS.map((name, at) =>
                at > first ? (at < 3 ? 1 : 0) : at < 3 && !names.includes(name) ? now[name] : 0);
            Object.keys(fields).forEach((name) => { values[UNITS.indexOf(unit(name))] = Number(fields[name]); });
            return DateTime.#of(values, zoneName(options?.zone));
        }
        static fromISO(text, options) {
            const found = ISO.exec(String(text).trim());
            if (!found) throw new Error(`\`${String(text).slice(0, 100)}\` is no ISO date`);
            const zone = zoneName(options?.zone);
            const fields = found.slice(1, 7).map((field, at) => Number(field ?? (at < 3 ? 1 : 0)));
            const millis = Number(`0.${found[7] ?? 0}`) * 1000;
            if (fields[1] < 1 || fields[1] > 12 || fields[2] < 1 || fields[2] > daysIn(fields[0], fields[1])
                || fields[3] > 24 || fields[4] > 59 || fields[5] > 59) {
                throw new Error(`\`${String(text).slice(0, 100)}\` is no ISO date`);
            }
            const local = utc(...fields, Math.trunc(millis));
            if (!found[8]) return new DateTime(fromLocal(zone, local), zone);
            const offset = found[8].toUpperCase() === 'Z' ? 0 : offsetAt(found[8], 0);
            return new DateTime(local - offset * 60000, zone);
        }
        static isDateTime(value) { return typeof value === 'object' && value !== null && #millis in value; }
        static max(...dates) { return dates.reduce((left, right) => (right > left ? right : left)); }
        static min(...dates) { return dates.reduce((left, right) => (right < left ? right : left)); }
        static fromFormat() { throw new Error('`DateTime.fromFormat` is not supported'); }
        static #of(fields, zone) {
            const [year, month = 1, day = 1, hour = 0, minute = 0, second = 0, millisecond = 0] = fields.map(Number);
            return new DateTime(fromLocal(zone, utc(year, month, day, hour, minute, second, millisecond)), zone);
        }

        #get() {
            if (!this.#fields) {
                const offset = offsetAt(this.#zone, this.#millis);
                const date = new Date(this.#millis + offset * 60000);
                this.#fields = {
                    offset,
                    year: date.getUTCFullYear(), month: date.getUTCMonth() + 1, day: date.getUTCDate(),
                    hour: date.getUTCHours(), minute: date.getUTCMinutes(), second: date.getUTCSeconds(),
                    millisecond: date.getUTCMilliseconds(), weekday: date.getUTCDay() || 7,
                };
            }
            return this.#fields;
        }
        #local() { return this.#millis + this.#get().offset * 60000; }

        get year() { return this.#get().year; }
        get month() { return this.#get().month; }
        get day() { return this.#get().day; }
        get hour() { return this.#get().hour; }
        get minute() { return this.#get().minute; }
        get second() { return this.#get().second; }
        get millisecond() { return this.#get().millisecond; }
        get weekday() { return this.#get().weekday; }
        get offset() { return this.#get().offset; }
        get quarter() { return Math.ceil(this.month / 3); }
        get ordinal() { return Math.floor((this.#local() - utc(this.year, 1, 1, 0, 0, 0, 0)) / FIXED.day) + 1; }
        get daysInMonth() { return daysIn(this.year, this.month); }
        get isInLeapYear() { return daysIn(this.year, 2) === 29; }
        get weekYear() { return new Date(this.#local() + (4 - this.weekday) * FIXED.day).getUTCFullYear(); }
        get weekNumber() {
            const thursday = this.#local() + (4 - this.weekday) * FIXED.day;
            return Math.floor((thursday - utc(this.weekYear, 1, 1, 0, 0, 0, 0)) / FIXED.week) + 1;
        }
        get monthLong() { return MONTHS[this.month - 1]; }
        get monthShort() { return this.monthLong.slice(0, 3); }
        get weekdayLong() { return DAYS[this.weekday - 1]; }
        get weekdayShort() { return this.weekdayLong.slice(0, 3); }
        get zoneName() { return this.#zone; }
        get isValid() { return true; }
        get isWeekend() { return this.weekday > 5; }

        toMillis() { return this.#millis; }
        toSeconds() { return this.#millis / 1000; }
        toUnixInteger() { return Math.floor(this.#millis / 1000); }
        toJSDate() { return new Date(this.#millis); }
        toISODate() { return `${this.#isoYear()}-${pad(this.month, 2)}-${pad(this.day, 2)}`; }
        toISOTime() {
            return `${this.toFormat('HH:mm:ss.SSS')}${this.#zone.toUpperCase() === 'UTC' ? 'Z' : this.toFormat('ZZ')}`;
        }
        toISO() { return `${this.toISODate()}T${this.toISOTime()}`; }
        toSQLDate() { return this.toISODate(); }
        toObject() { return Object.fromEntries(UNITS.map((name) => [name, this[name]])); }
        toString() { return this.toISO(); }
        toJSON() { return this.toISO(); }
        valueOf() { return this.#millis; }
        toUTC() { return new DateTime(this.#millis, 'UTC'); }
        toLocal() { return new DateTime(this.#millis); }
        toDateTime() { return this; }
        setZone(zone) { return new DateTime(this.#millis, zone); }
        equals(other) { return DateTime.isDateTime(other) && +other === +this && other.zoneName === this.#zone; }
        hasSame(other, name) { return +this.startOf(name) === +other.setZone(this.#zone).startOf(name); }
        #isoYear() {
            return this.year < 0 || this.year > 9999 ? `${this.year < 0 ? '-' : '+'}${pad(Math.abs(this.year), 6)}`
                : pad(this.year, 4);
        }

        plus(amount, name) { return this.#shift(amount, name, 1); }
        minus(amount, name) { return this.#shift(amount, name, -1); }
        #shift(amount, name, sign) {
            if (typeof amount !== 'object' || amount === null) {
                amount = name === undefined ? { millisecond: amount } : { [name]: amount };
            }
            let months = 0;
            let days = 0;
            let millis = 0;
            for (const key of Object.keys(amount)) {
                const count = sign * Number(amount[key]);
                if (!Number.isFinite(count)) throw new Error(`\`${key}\` is no number`);
                switch (unit(key)) {
                    case 'year': months += 12 * count; break;
                    case 'quarter': months += 3 * count; break;
                    case 'month': months += count; break;
                    case 'week': days += 7 * count; break;
                    case 'day': days += count; break;
                    default: millis += FIXED[unit(key)] * count;
                }
            }
            let moved = this.#millis;
            if (months || days) {
                // Months and days keep the time on the clock; what is shorter is exact.
                const month = this.year * 12 + this.month - 1 + Math.trunc(months);
                const [year, of] = [Math.floor(month / 12), (month % 12 + 12) % 12 + 1];
                const whole = Math.trunc(days);
                const day = Math.min(this.day, daysIn(year, of)) + whole;
                const local = utc(year, of, day, this.hour, this.minute, this.second, this.millisecond);
                moved = fromLocal(this.#zone, local) + (days - whole) * FIXED.day;
            }
            return new DateTime(moved + millis, this.#zone);
        }

        set(fields) {
            const values = this.toObject();
            for (const key of Object.keys(fields)) {
                if (!UNITS.includes(unit(key))) throw new Error(`\`${key}\` cannot be set`);
                values[unit(key)] = Number(fields[key]);
            }
            if (!('day' in fields || 'days' in fields)) {
                values.day = Math.min(values.day, daysIn(values.year, values.month));
            }
            return DateTime.#of(UNITS.map((name) => values[name]), this.#zone);
        }
        startOf(name) {
            name = unit(name);
            if (name === 'week') return this.minus({ days: this.weekday - 1 }).startOf('day');
            if (name === 'quarter') return this.minus({ months: (this.month - 1) % 3 }).startOf('month');
            const last = UNITS.indexOf(name);
            return DateTime.#of(UNITS.map((key, at) => (at <= last ? this[key] : at < 3 ? 1 : 0)), this.#zone);
        }
        endOf(name) { return this.startOf(name).plus({ [unit(name)]: 1 }).minus({ millisecond: 1 }); }
        beginningOf(name = 'week') { return this.startOf(name); }
        endOfMonth() { return this.endOf('month'); }
        extract(name) { return unit(name) === 'week' ? this.weekNumber : this[unit(name)]; }
        isBetween(first, second) {
            const [from, to] = [+DateTime.#from(first), +DateTime.#from(second)];
            return +this > Math.min(from, to) && +this < Math.max(from, to);
        }
        diff(other, names = 'milliseconds') {
            other = DateTime.#from(other);
            const amount = {};
            for (const name of [names].flat()) amount[`${unit(name)}s`] = 0;
            const wanted = Object.keys(amount).map(unit);
            const order = ['year', 'quarter', 'month', 'week', 'day', 'hour', 'minute', 'second', 'millisecond']
                .filter((name) => wanted.includes(name));
            let from = other.setZone(this.#zone);
            order.forEach((name, at) => {
                let count = 0;
                if (FIXED[name] && name !== 'day' && name !== 'week') {
                    count = (this - from) / FIXED[name];
                    if (at < order.length - 1) count = Math.trunc(count);
                } else {
                    count = from.#whole(this, name);
                    if (at === order.length - 1) {
                        const low = from.plus({ [name]: count });
                        const next = from.plus({ [name]: count + (this >= from ? 1 : -1) });
                        if (+low !== +this) count += (this - low) / Math.abs(next - low);
                    }
                }
                from = from.plus({ [name]: Math.trunc(count) });
                amount[`${name}s`] = count;
            });
            const duration = { ...amount, toObject: () => ({ ...amount }) };
            duration.as = (name) => this.diff(other, name)[`${unit(name)}s`];
            duration.toMillis = duration.valueOf = () => this - other;
            return duration;
        }
        diffTo(other, name = 'days') {
            const to = DateTime.#from(other);
            const difference = to.diff(this, name);
            return [name].flat().length === 1 ? difference[`${unit([name].flat()[0])}s`] : difference.toObject();
        }
        diffNow(name) { return this.diff(DateTime.now(), name); }
        diffToNow(name = 'days') { return this.diff(DateTime.now(), name)[`${unit(name)}s`]; }
        // How many whole units fit from here to `end`, negative when it is before.
        #whole(end, name) {
            const length = FIXED[name] ?? { year: 365.2425, quarter: 91.31, month: 30.44 }[name] * FIXED.day;
            let count = Math.trunc((end - this) / length);
            const sign = end >= this ? 1 : -1;
            const fits = (number) => sign * (end - this.plus({ [name]: number })) >= 0;
            while (count !== 0 && !fits(count)) count -= sign;
            while (fits(count + sign)) count += sign;
            return count;
        }
        static #from(value) {
            if (DateTime.isDateTime(value)) return value;
            if (value instanceof Date) return DateTime.fromJSDate(value);
            return typeof value === 'number' ? DateTime.fromMillis(value) : DateTime.fromISO(value);
        }

        format(pattern) { return this.toFormat(pattern); }
        toFormat(pattern) {
            return String(pattern).replace(PATTERN, (token) => this.#token(token));
        }
        #token(token) {
            const hour12 = this.hour % 12 || 12;
            const offset = Math.abs(this.offset);
            const sign = this.offset < 0 ? '-' : '+';
            switch (token) {
                case 'yyyy': return pad(this.year, 4);
                case 'yy': return pad(this.year % 100, 2);
                case 'y': return String(this.year);
                case 'LLLL': case 'MMMM': return this.monthLong;
                case 'LLL': case 'MMM': return this.monthShort;
                case 'LL': case 'MM': return pad(this.month, 2);
                case 'L': case 'M': return String(this.month);
                case 'dd': return pad(this.day, 2);
                case 'd': return String(this.day);
                case 'EEEE': case 'cccc': return this.weekdayLong;
                case 'EEE': case 'ccc': return this.weekdayShort;
                case 'E': case 'c': return String(this.weekday);
                case 'HH': return pad(this.hour, 2);
                case 'H': return String(this.hour);
                case 'hh': return pad(hour12, 2);
                case 'h': return String(hour12);
                case 'mm': return pad(this.minute, 2);
                case 'm': return String(this.minute);
                case 'ss': return pad(this.second, 2);
                case 's': return String(this.second);
                case 'SSS': case 'u': return pad(this.millisecond, 3);
                case 'S': return String(this.millisecond);
                case 'a': return this.hour < 12 ? 'AM' : 'PM';
                case 'ZZ': return `${sign}${pad(Math.trunc(offset / 60), 2)}:${pad(offset % 60, 2)}`;
                case 'ZZZ': return `${sign}${pad(Math.trunc(offset / 60), 2)}${pad(offset % 60, 2)}`;
                case 'Z': return `${sign}${Math.trunc(offset / 60)}${offset % 60 ? `:${pad(offset % 60, 2)}` : ''}`;
                case 'z': case 'ZZZZ': return this.#zone;
                case 'ooo': return pad(this.ordinal, 3);
                case 'o': return String(this.ordinal);
                case 'q': return String(this.quarter);
                case 'WW': return pad(this.weekNumber, 2);
                case 'W': return String(this.weekNumber);
                case 'kkkk': return pad(this.weekYear, 4);
                case 'X': return String(this.toUnixInteger());
                case 'x': return String(this.#millis);
                default: return token.length > 1 && token[0] === "'" ? token.slice(1, -1) : token;
            }
        }
    }
    return DateTime;
})
